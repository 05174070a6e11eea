"""Matplotlib figures in one style, saved atomically."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from tlcli.contract.files.atomic_file import whole_file
from tlcli.contract.files.display_name import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 110
_PNG = {"compress_level": 1}  # of 9: a sheet of photographs is a tenth larger and takes a fifth of the time


def new_figure(width: float, height: float) -> Figure:
    """Return a figure, its size in inches; made without pyplot, which keeps every figure and needs a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Save a figure atomically, in the format of the path's suffix.

    Raises:
        OSError: the file cannot be written.
    """
    with whole_file(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # labels in scripts that the font lacks
        figure.savefig(temporary, pil_kwargs=_PNG if path.suffix == ".png" else None)


def plain(text: str) -> str:
    """Return text on one line that matplotlib does not read as a formula."""
    return printable(text).replace("$", r"\$")
