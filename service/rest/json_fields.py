"""Fields of received JSON: each error names the field, what was expected, and what was sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic_core import from_json

from tlcli.contract.errors import RequestError

T = TypeVar("T")

_MAX_VALUES = 1_000_000
"""Limit of the values in JSON, which is parsed in one step that blocks everything else: a million numbers take 0.25 s in nested lists."""

_MAX_CONTAINERS = 400_000
"""Limit of lists and objects, up to 232 bytes each: a million numbers as pixels of three are in a third as many lists."""

_CHUNK_BYTES = 1 << 16
_MAX_WIDE_BYTES = 1 << 20
"""Limit of JSON with non-ASCII characters: one of them can make a whole string take four bytes per character."""

_NAMES: dict[type, str] = {bool: "true or false", int: "an integer", str: "a string", list: "a list", dict: "an object"}


def read_object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object. NaN and Infinity, which are not JSON, are errors.

    Raises:
        RequestError: the data are no JSON object, or hold too many values.
    """
    _check_cost(data)
    try:
        document = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"the request's {len(data):,} bytes are not JSON: {error}") from error
    if not isinstance(document, dict):
        raise RequestError(f"the request: expected an object, got {shown(document)}")
    return document


def _check_cost(data: bytes) -> None:
    """Estimate from the bytes what parsing would create. Punctuation in strings is counted too, of which there is little."""
    _check_count(data, (b",",), _MAX_VALUES, "values")
    _check_count(data, (b"[", b"{"), _MAX_CONTAINERS, "lists and objects")
    if len(data) > _MAX_WIDE_BYTES and not (data.isascii() and b"\\u" not in data):
        raise RequestError(
            f"the request is {len(data):,} bytes of JSON with non-ASCII characters, of which at most {_MAX_WIDE_BYTES:,} bytes are"
            " accepted: send names in a smaller request"
        )


def _check_count(data: bytes, marks: tuple[bytes, ...], most: int, what: str) -> None:
    count = 0
    for start in range(0, len(data), _CHUNK_BYTES):
        count += sum(data.count(mark, start, start + _CHUNK_BYTES) for mark in marks)
        if count > most:
            raise RequestError(f"the request has more than {most:,} {what} in JSON: send tensors as binary data")


def required(where: str, document: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """Return a required field.

    Raises:
        RequestError: the field is missing, or of another type.
    """
    if name not in document:
        raise RequestError(f"{where}: {name!r} is missing: expected {_NAMES[kind]}")
    return _of_kind(where, document, name, kind)


def optional(where: str, document: Mapping[str, Any], name: str, default: T) -> T:
    """Return an optional field, or the default if it is missing or null.

    Raises:
        RequestError: the field is of another type than `default`.
    """
    return default if document.get(name) is None else _of_kind(where, document, name, type(default))


def objects(where: str, document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return a list of objects; empty if the field is missing.

    Raises:
        RequestError: the field is no list of objects.
    """
    items: list[Any] = optional(where, document, name, [])
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise RequestError(f"{name}[{number}]: expected an object, got {shown(item)}")
    return items


def fits(number: int) -> bool:
    """Return True for a number of 64 bits. JSON may hold thousands of digits, which Python refuses to print."""
    return -(2**63) <= number < 2**63


def shown(value: object) -> str:
    """Format a value for a message, shortened to 60 characters."""
    text = repr(value) if not isinstance(value, list | dict) else f"{_NAMES[type(value)]} of {len(value):,}"
    return text if len(text) <= 60 else text[:60] + " ..."


def _of_kind(where: str, document: Mapping[str, Any], name: str, kind: type[T]) -> T:
    value = document[name]
    if type(value) is not kind:  # `isinstance` would accept true and false as integers
        raise RequestError(f"{where}: {name!r} is {shown(value)}: expected {_NAMES[kind]}")
    if isinstance(value, int) and not fits(value):
        raise RequestError(f"{where}: {name!r} is {shown(value)}: expected a 64-bit integer")
    return value
