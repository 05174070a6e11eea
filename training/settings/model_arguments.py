"""Arguments of `timm.create_model` that the user gives, and how they are written on the command line."""

from __future__ import annotations

import ast

Argument = bool | int | float | str | tuple[int | float, ...]
"""Value of an argument of `timm.create_model`."""


def parse_argument(text: str) -> Argument:
    """Return the value of an argument on the command line: numbers with commas are a tuple, and what is not a number or a flag is text."""
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        return text
    if isinstance(value, list | tuple) and value and all(isinstance(number, int | float) for number in value):
        return tuple(value)
    return value if isinstance(value, bool | int | float) else text


def argument_text(value: object) -> str:
    """Return an `Argument` as it is written on the command line. JSON lists are tuples."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) + ("," if len(value) == 1 else "")
    return str(value)
