"""Pydantic's validation errors as one setting and one reason."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import ValidationError


def first_problem(error: ValidationError, known: Iterable[str] = ()) -> tuple[str, str]:
    """Return the name of the first wrong setting, empty if it is all of them together, and what is wrong with it.

    Args:
        error: raised by a model of settings.
        known: names of the settings, to suggest the nearest for an unknown one.
    """
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] != "extra_forbidden":
        return name, first["msg"].removeprefix("Value error, ")
    near = difflib.get_close_matches(name, known, n=1)
    return name, f"no such setting{f': did you mean {near[0]}?' if near else ''}"
