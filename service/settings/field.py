"""How a setting is declared: once, beside the dataclass field that holds it. Files, environment and flags are read by this alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

Metadata = Mapping[str, Any]
Value = bool | int | float | str | Path | None

_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
}
_TOLD = "told"


@dataclass(frozen=True)
class Told:
    """What a type does not say of a setting.

    text: what it is for, in a sentence or two.
    low, high: the least and the greatest value.
    choices: the values there are, where they are few.
    expected: the range in words; empty where `low`, `high` and `choices` make them.
    """

    text: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    expected: str = ""


@dataclass(frozen=True)
class Setting:
    """One setting.

    path: the fields that lead to it; more than one where it is a part of another setting.
    kind: of its values: bool, int, float, str or Path.
    default: what it is where nothing is said; None: it is not set.
    """

    path: tuple[str, ...]
    kind: type
    default: Value
    told: Told

    @property
    def name(self) -> str:
        """`limits_max_bytes` is `max_bytes` of `limits`."""
        return "_".join(self.path)

    @property
    def expected(self) -> str:
        """Its range in words; empty where every value of its kind will do."""
        told = self.told
        if told.expected:
            return told.expected
        if told.choices:
            return ", ".join(told.choices[:-1]) + f" or {told.choices[-1]}"
        if told.low is None:
            return ""
        return f"{told.low:,g} or more" if told.high is None else f"{told.low:g} to {told.high:,.0f}"

    def of(self, settings: object) -> Value:
        """Its value there."""
        for name in self.path:
            settings = getattr(settings, name)
        return settings  # type: ignore[return-value]  # whatever has the path has the kind

    def problem(self, value: object) -> str:
        """What was expected instead of a value; empty where it will do."""
        if value is None and self.default is None:
            return ""
        if not self._is_of_kind(value):
            return f"expected {_KINDS[self.kind]}"
        told = self.told
        if isinstance(value, int | float):
            fits = (
                not (isinstance(value, float) and not math.isfinite(value))
                and (told.low is None or value >= told.low)
                and (told.high is None or value <= told.high)
            )
        else:
            fits = value != "" and (not told.choices or value in told.choices)
        return "" if fits else f"expected {self.expected or _KINDS[self.kind]}"

    def _is_of_kind(self, value: object) -> bool:
        if self.kind is float:
            return isinstance(value, int | float) and not isinstance(value, bool)
        return isinstance(value, Path) if self.kind is Path else type(value) is self.kind


def told(text: str, *, low: float | None = None, high: float | None = None, choices: tuple[str, ...] = (), expected: str = "") -> Metadata:
    """Metadata for a dataclass field that is a setting; see `Told`."""
    return {_TOLD: Told(text, low, high, choices, expected)}


def told_of_each(**fields: Metadata) -> Metadata:
    """Metadata for a dataclass field that is a dataclass of settings: by the names of its fields, what `told` gives."""
    return {_TOLD: {name: one[_TOLD] for name, one in fields.items()}}


def declared(kind: type) -> tuple[Setting, ...]:
    """The settings of a dataclass, in their order."""
    return tuple(_declared(kind, (), {}))


def _declared(kind: type, above: tuple[str, ...], told: Mapping[str, Told]) -> list[Setting]:
    hints = get_type_hints(kind)
    found: list[Setting] = []
    for one in dataclasses.fields(kind):
        path, hint = (*above, one.name), hints[one.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            found += _declared(hint, path, one.metadata.get(_TOLD, {}))
        else:
            options = [part for part in get_args(hint) or (hint,) if part is not type(None)]
            found.append(Setting(path, options[0], getattr(kind, one.name), told.get(one.name) or one.metadata.get(_TOLD, Told())))
    return found
