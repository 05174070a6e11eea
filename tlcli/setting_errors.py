"""Conversion of Pydantic validation errors to a setting name and a reason."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import ValidationError


def first_problem(error: ValidationError, known: Iterable[str] = ()) -> tuple[str, str]:
    """Return the name of the first invalid setting and the problem with it.

    The name is empty if the problem concerns the settings as a whole.

    Args:
        error: error raised by a settings model.
        known: names of the known settings, used to suggest the closest match for an unknown one.
    """
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] != "extra_forbidden":
        return name, first["msg"].removeprefix("Value error, ")
    near = difflib.get_close_matches(name, known, n=1)
    return name, f"no such setting{f': did you mean {near[0]}?' if near else ''}"
