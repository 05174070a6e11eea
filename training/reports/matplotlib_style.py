"""Matplotlib figures with a common style, saved atomically."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from tlcli.contract.files.atomic_file import whole_file
from tlcli.contract.files.display_name import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 110
_PNG = {"compress_level": 1}  # level 1 of 9: a sheet of photographs is 10 % larger but takes a fifth of the time


def new_figure(width: float, height: float) -> Figure:
    """Create a figure with the given size in inches. pyplot is not used, because it keeps every figure alive and needs a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Save a figure atomically. The file suffix determines the format.

    Raises:
        OSError: the file cannot be written.
    """
    with whole_file(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # labels with characters that the font lacks
        figure.savefig(temporary, pil_kwargs=_PNG if path.suffix == ".png" else None)


def plain(text: str) -> str:
    """Return text on one line, escaped so that matplotlib does not interpret it as a formula."""
    return printable(text).replace("$", r"\$")
