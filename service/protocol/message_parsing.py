"""Parsing of protobuf messages, with a limit on its cost. An empty field takes two bytes but becomes an object once parsed."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from tlcli.contract.errors import RequestError

MAX_FIELDS = 20_000
"""Maximum number of fields in a message and its nested messages. A request with 64 images and 100 outputs has fewer than 1,000."""

MAX_NUMBERS = 4_000_000
"""Maximum number of packed numbers, such as images in `uint_contents`. This is enough for 26 images of 224 x 224 pixels."""

MAX_TEXT_BYTES = 64 * 1024
"""Maximum size in bytes of a text field, such as a name or an id."""

M = TypeVar("M", bound=Message)

_VARINT, _FIXED64, _LENGTH, _START, _END, _FIXED32 = range(6)
_MESSAGE, _TEXT, _BYTES, _NUMBERS = range(4)
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class _Field:
    name: str
    kind: int
    message: Descriptor | None


def parse(kind: type[M], data: bytes) -> M:
    """Parse a message.

    Raises:
        RequestError: the bytes are not a message of this type, or too costly to parse; see `check_cost`.
    """
    check_cost(data, kind.DESCRIPTOR)  # type: ignore[arg-type]  # the stubs have two names for one class
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise RequestError(
            f"the request ({len(data):,} bytes) is not a valid {kind.DESCRIPTOR.full_name} message: use the .proto of this server"
        ) from error


def message_bytes(data: bytes) -> int:
    """Return the memory in bytes that a message takes: gRPC's buffer, the bytes, and the parsed message."""
    return 3 * len(data)


def check_cost(data: bytes, descriptor: Descriptor) -> None:
    """Check that parsing a message would not create too many objects. The bytes of images are not counted.

    Invalid data ends the check early, and the parser rejects the data afterwards.

    Args:
        data: encoded message.
        descriptor: type of the message.

    Raises:
        RequestError: the message has too many fields or numbers, or a text field that is too long.
    """
    fields = numbers = 0
    open_messages: list[tuple[int, int, Mapping[int, _Field]]] = [(0, len(data), _fields(descriptor))]
    while open_messages:
        start, end, known = open_messages.pop()
        while start < end:
            fields += 1
            if fields > MAX_FIELDS:
                raise RequestError(f"more than {MAX_FIELDS:,} fields in a message of {len(data):,} bytes: split it into several requests")
            tag, start = _varint(data, start, end)
            kind = tag & 7
            if kind == _VARINT:
                _, start = _varint(data, start, end)
            elif kind == _FIXED64:
                start += 8
            elif kind == _FIXED32:
                start += 4
            elif kind == _LENGTH:
                length, start = _varint(data, start, end)
                field = known.get(tag >> 3)
                stop = min(start + length, end)
                if field is None or field.kind == _BYTES:
                    pass
                elif field.kind == _MESSAGE:
                    assert field.message is not None
                    open_messages.append((start, stop, _fields(field.message)))
                elif field.kind == _TEXT and length > MAX_TEXT_BYTES:
                    raise RequestError(f"{field.name!r} has {length:,} bytes: expected at most {MAX_TEXT_BYTES:,} bytes of text")
                elif field.kind == _NUMBERS:
                    numbers += _numbers(data, start, stop)
                    if numbers > MAX_NUMBERS:
                        raise RequestError(f"{field.name!r} holds more than {MAX_NUMBERS:,} numbers: send tensors as raw_input_contents")
                start += length
            elif kind not in (_START, _END):
                return


def _numbers(data: bytes, start: int, stop: int) -> int:
    """Estimate the number of packed numbers between two positions.

    In a short range, the estimate is the number of bytes, an upper bound for any encoding. In a longer range, it is the number of
    varints, found by counting the bytes below 128, since each varint ends with one.
    """
    if stop - start <= MAX_NUMBERS // 8:
        return stop - start
    import numpy as np  # imported here, since proxies on Ray do not need it

    packed = np.frombuffer(data, np.uint8, stop - start, start)
    chunks = range(0, len(packed), _CHUNK_BYTES)
    return sum(int(np.count_nonzero(packed[chunk : chunk + _CHUNK_BYTES] < 0x80)) for chunk in chunks)


def _varint(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Read a varint. Return its value and the position after it, which is at most `end`."""
    value = shift = 0
    while start < end and shift < 70:
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return value, start


@functools.cache
def _fields(descriptor: Descriptor) -> Mapping[int, _Field]:
    return {field.number: _Field(field.name, _kind(field), field.message_type) for field in descriptor.fields}


def _kind(field: FieldDescriptor) -> int:
    if field.type in (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_GROUP):
        return _MESSAGE
    if field.type == FieldDescriptor.TYPE_STRING:
        return _TEXT
    return _BYTES if field.type == FieldDescriptor.TYPE_BYTES else _NUMBERS
