"""HTML and SVG, element by element: whatever is not markup already is escaped, so that no name of a class can become any."""

from __future__ import annotations

import html
from collections.abc import Iterable

_VOID = frozenset({"meta", "img", "br", "col"})


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | int | Iterable["Child"] | None
"""What an element may hold: markup, text, numbers, several of them, or nothing."""


def element(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """`<name attributes>children</name>`.

    Args:
        name: of the element.
        children: text is escaped, `Markup` is not; None is left out.
        attributes: `_` is written as `-`, and one at the end is dropped (`class_`); None and False are left out, True has no value.
    """
    given = "".join(_attribute(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    return Markup(f"<{name}{given}>" if name in _VOID else f"<{name}{given}>{join(children)}</{name}>")


def join(children: Child) -> Markup:
    """One piece of markup of several, text among them escaped."""
    match children:
        case None:
            return Markup("")
        case Markup():
            return children
        case str() | int():
            return Markup(html.escape(str(children)))
        case _:
            return Markup("".join(map(join, children)))


def _attribute(name: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f' {name}="{html.escape(text)}"'
