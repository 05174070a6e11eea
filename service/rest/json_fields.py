"""Readers for fields of received JSON. Each error names the field, the expected type and the received value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic_core import from_json

from tlcli.contract.errors import RequestError

T = TypeVar("T")

_MAX_VALUES = 1_000_000
"""Maximum number of JSON values. Parsing is a single step that blocks all other work; a million numbers in nested lists take 0.25 s."""

_MAX_CONTAINERS = 400_000
"""Maximum number of JSON lists and objects, which take up to 232 bytes each. A million numbers sent as pixels of three values each make a
third of a million lists."""

_CHUNK_BYTES = 1 << 16
_MAX_WIDE_BYTES = 1 << 20
"""Maximum size in bytes of JSON with non-ASCII characters. One such character can make a whole string take four bytes per character."""

_NAMES: dict[type, str] = {bool: "true or false", int: "an integer", str: "a string", list: "a list", dict: "an object"}


def read_object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object. NaN and Infinity are rejected, because they are not valid JSON.

    Raises:
        RequestError: the data is not a JSON object, or it contains too many values.
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
    """Reject JSON that is too costly to parse, estimated by counting punctuation in the bytes.

    Punctuation inside strings is counted too, but there is little of it.
    """
    _check_count(data, (b",",), _MAX_VALUES, "values")
    _check_count(data, (b"[", b"{"), _MAX_CONTAINERS, "lists and objects")
    if len(data) > _MAX_WIDE_BYTES and not (data.isascii() and b"\\u" not in data):
        raise RequestError(
            f"the request is {len(data):,} bytes of JSON with non-ASCII characters or \\u escapes: at most {_MAX_WIDE_BYTES:,} bytes of"
            " such JSON are accepted: send a smaller request"
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
        RequestError: the field is missing or has a different type.
    """
    if name not in document:
        raise RequestError(f"{where}: {name!r} is missing: expected {_NAMES[kind]}")
    return _of_kind(where, document, name, kind)


def optional(where: str, document: Mapping[str, Any], name: str, default: T) -> T:
    """Return an optional field, or the default if it is missing or null.

    Raises:
        RequestError: the field has a different type than `default`.
    """
    return default if document.get(name) is None else _of_kind(where, document, name, type(default))


def objects(where: str, document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return a list of objects; empty if the field is missing.

    Raises:
        RequestError: the field is not a list of objects.
    """
    items: list[Any] = optional(where, document, name, [])
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise RequestError(f"{name}[{number}]: expected an object, got {shown(item)}")
    return items


def fits(number: int) -> bool:
    """Return True if a number fits in a signed 64-bit integer. JSON numbers may have thousands of digits, which Python refuses to print."""
    return -(2**63) <= number < 2**63


def shown(value: object) -> str:
    """Format a value for a message and truncate it to 60 characters."""
    text = repr(value) if not isinstance(value, list | dict) else f"{_NAMES[type(value)]} of {len(value):,}"
    return text if len(text) <= 60 else text[:60] + " ..."


def _of_kind(where: str, document: Mapping[str, Any], name: str, kind: type[T]) -> T:
    value = document[name]
    if type(value) is not kind:  # `isinstance` would accept true and false as integers
        raise RequestError(f"{where}: {name!r} is {shown(value)}: expected {_NAMES[kind]}")
    if isinstance(value, int) and not fits(value):
        raise RequestError(f"{where}: {name!r} is {shown(value)}: expected a 64-bit integer")
    return value
