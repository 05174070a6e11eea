"""Figures on their way to a PNG."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from tlcli.contract.files.atomic_file import whole_file
from tlcli.contract.files.display_name import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 110
_PNG = {"compress_level": 1}  # of 9; a sheet of photographs comes out a tenth larger, in a fifth of the time


def new_figure(width: float, height: float) -> Figure:
    """Without pyplot, which keeps every figure and asks for a display. Sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Whole or not at all, in the format that the path's suffix names.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # labels in scripts that the font does not have
        figure.savefig(temporary, pil_kwargs=_PNG if path.suffix == ".png" else None)


def plain(text: str) -> str:
    """Without matplotlib's formulas, and on one line."""
    return printable(text).replace("$", r"\$")
