"""What the sections of a report are built of: tables, lists, keys, and figures as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tlcli.training.metrics.significance import wilson_interval
from tlcli.training.reports.html.markup import Child, Markup, element, join
from tlcli.training.runs.summary import Figures

CALLED = {"train": "Training", "val": "Validation", "test": "Test"}

MOST_LISTED = 20
"""Of images by name."""

MANY_CLASSES = 12
"""More than this are listed in a frame of their own."""


def table(
    heads: Sequence[str], rows: Sequence[Sequence[Child]], numbers_from: int = 99, headless: bool = False, wide: bool = False
) -> Markup:
    """Rows of as many cells as there are `heads`, which are shown unless it is `headless`.

    numbers_from: the first column of numbers. wide: as wide as the page.
    """
    kinds = ["number" if place >= numbers_from else "value" if place else "name" for place in range(len(heads))]
    head = element("thead", element("tr", [element("th", name, class_=kind) for name, kind in zip(heads, kinds, strict=True)]))
    body = [element("tr", [element("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True)]) for row in rows]
    rows_and_head = element("table", None if headless else head, element("tbody", body), class_="wide" if wide else None)
    return element("div", rows_and_head, class_="scroll")


def bullets(lines: Iterable[str]) -> Markup:
    """A list."""
    return element("ul", [element("li", line) for line in lines])


def bar(value: float | None) -> Markup:
    """A share in [0, 1] as a cell: the number, and a bar below it. None: a dash."""
    if value is None:
        return element("td", "–", class_="number")
    return element("td", f"{value:.3f}", element("i", style=f"width: calc((100% - 18px) * {value:.4f})"), class_="bar")


def key(*entries: tuple[str, str]) -> Markup:
    """What the colours of a chart mean. entries: the class of each colour, and what it says."""
    return element("p", [join([element("i", class_=kind), says]) for kind, says in entries], class_="key")


def missing(name: str) -> Markup:
    """What stands in the place of a file that the folder lacks."""
    return element("p", f"{name} is not in the run's folder: it is of an earlier version, or the file was taken away.", class_="soft")


def plain(value: Any) -> str:
    """A setting's value for people."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case Mapping():
            return ", ".join(f"{key}={one}" for key, one in value.items()) or "–"
        case list() | tuple():
            return ", ".join(map(plain, value))
        case _:
            return str(value)


def percent(value: float | None) -> str:
    """A share in [0, 1]; None: a dash."""
    return "–" if value is None else f"{100 * value:.2f} %"


def number(value: float | None) -> str:
    """Four places after the point; None: a dash."""
    return "–" if value is None else f"{value:.4f}"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def interval(part: Figures) -> str:
    """The 95 % interval of a part's top-1."""
    low, high = wilson_interval(part.right, part.count) if part.count else (0.0, 1.0)
    return f"{100 * low:.1f} to {100 * high:.1f} %"
