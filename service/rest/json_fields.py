"""JSON that came, read field by field: each refusal names the field, what was expected and what came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic_core import from_json

from tlcli.contract.errors import RequestError

T = TypeVar("T")

_MAX_VALUES = 1_000_000
"""JSON is read in one go, in which nothing else runs: a million numbers take a quarter of a second, where lists are nested."""

_MAX_CONTAINERS = 400_000
"""A million numbers as pixels of three come in a third as many lists; each takes up to 232 bytes."""

_PART_BYTES = 1 << 16
_MAX_WIDE_BYTES = 1 << 20
"""Bound on JSON with letters beyond ASCII: one of them makes a whole text take four bytes a letter."""

_NAMES: dict[type, str] = {bool: "true or false", int: "a whole number", str: "a text", list: "a list", dict: "an object"}


def read_object(data: bytes) -> dict[str, Any]:
    """A JSON object. NaN and Infinity, which are no JSON, are not read.

    Raises:
        RequestError: it is none, or holds too many values.
    """
    _check_cost(data)
    try:
        found = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"{len(data):,} bytes came that are no JSON: {error}") from error
    if not isinstance(found, dict):
        raise RequestError(f"the request: an object was expected, {shown(found)} came")
    return found


def _check_cost(data: bytes) -> None:
    """Count from the bytes what would be made of them. Marks in texts are counted too, which few have."""
    _check_count(data, (b",",), _MAX_VALUES, "values")
    _check_count(data, (b"[", b"{"), _MAX_CONTAINERS, "lists and objects")
    if len(data) > _MAX_WIDE_BYTES and not (data.isascii() and b"\\u" not in data):
        raise RequestError(
            f"{len(data):,} bytes of JSON came with letters beyond ASCII, of which at most {_MAX_WIDE_BYTES:,} bytes are read:"
            " send names in a smaller request"
        )


def _check_count(data: bytes, marks: tuple[bytes, ...], most: int, what: str) -> None:
    found = 0
    for start in range(0, len(data), _PART_BYTES):
        found += sum(data.count(mark, start, start + _PART_BYTES) for mark in marks)
        if found > most:
            raise RequestError(f"more than {most:,} {what} came as JSON: send tensors as binary data")


def field(where: str, given: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """A field that must be there.

    Raises:
        RequestError: it is not, or is of another kind.
    """
    if name not in given:
        raise RequestError(f"{where}: has no {name!r}: {_NAMES[kind]} was expected")
    return _of_kind(where, given, name, kind)


def optional(where: str, given: Mapping[str, Any], name: str, default: T) -> T:
    """A field, or what stands for it where it is left out or null.

    Raises:
        RequestError: it is of another kind than `default`.
    """
    return default if given.get(name) is None else _of_kind(where, given, name, type(default))


def objects(where: str, given: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """A list of objects; none where it is left out.

    Raises:
        RequestError: it is no such list.
    """
    found: list[Any] = optional(where, given, name, [])
    for number, one in enumerate(found):
        if not isinstance(one, dict):
            raise RequestError(f"{name}[{number}]: an object was expected, {shown(one)} came")
    return found


def fits(number: int) -> bool:
    """True for a number of 64 bits: JSON's have thousands of digits, which Python does not write."""
    return -(2**63) <= number < 2**63


def shown(value: object) -> str:
    """A value in a message: what it is, and how it begins."""
    text = repr(value) if not isinstance(value, list | dict) else f"{_NAMES[type(value)]} of {len(value):,}"
    return text if len(text) <= 60 else text[:60] + " ..."


def _of_kind(where: str, given: Mapping[str, Any], name: str, kind: type[T]) -> T:
    value = given[name]
    if type(value) is not kind:  # true and false are ints to Python
        raise RequestError(f"{where}: {name!r} is {shown(value)}: {_NAMES[kind]} was expected")
    if isinstance(value, int) and not fits(value):
        raise RequestError(f"{where}: {name!r} is {shown(value)}: 64 bits do not hold it")
    return value
