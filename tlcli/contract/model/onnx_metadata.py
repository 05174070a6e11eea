"""Reader for an ONNX file's metadata, which neither loads the weights nor requires the onnx package."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from tlcli.contract.errors import ModelFileError

# Field numbers of ModelProto and StringStringEntryProto in onnx.proto.
_METADATA_PROPS, _KEY, _VALUE = 14, 1, 2
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_MAX_ENTRY_BYTES = 16 * 1024 * 1024


def read_metadata(path: Path) -> dict[str, str]:
    """Return the `metadata_props` of an ONNX file. Only top-level fields are read; the graph is skipped with a seek.

    Raises:
        ModelFileError: the file cannot be read or is not an ONNX file.
    """
    metadata: dict[str, str] = {}
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            while (tag := read_varint(file, may_end=True)) is not None:
                field, wire_type = tag >> 3, tag & 7
                if field == 0:
                    raise ValueError("it has a field without a number")
                if wire_type == _LENGTH_DELIMITED:
                    length = read_varint(file) or 0
                    if file.tell() + length > size:
                        raise EOFError("it ends in the middle of a field")
                    if field == _METADATA_PROPS:
                        if length > _MAX_ENTRY_BYTES:
                            raise ValueError(f"it has a metadata entry of {length:,} bytes")
                        key, value = read_entry(file.read(length))
                        metadata[key] = value
                    else:
                        file.seek(length, 1)
                elif wire_type == _VARINT:
                    read_varint(file)
                elif wire_type in (_FIXED64, _FIXED32):
                    file.seek(8 if wire_type == _FIXED64 else 4, 1)
                else:
                    raise ValueError(f"it has a field of unknown wire type {wire_type}")
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror}") from error
    except (ValueError, EOFError) as error:
        raise ModelFileError(f"{path}: not an ONNX file ({error})") from error
    return metadata


def read_entry(data: bytes) -> tuple[str, str]:
    """Parse a StringStringEntryProto and return its key and value.

    Raises:
        ValueError, EOFError: the data are not a valid entry.
    """
    file, fields = BytesIO(data), {_KEY: "", _VALUE: ""}
    while (tag := read_varint(file, may_end=True)) is not None:
        length = read_varint(file)
        fields[tag >> 3] = file.read(length).decode("utf-8")
    return fields[_KEY], fields[_VALUE]


def read_varint(file: BinaryIO, may_end: bool = False) -> int | None:
    """Read a protobuf varint from the current position of a file.

    Args:
        file: binary file.
        may_end: return None at the end of the file instead of raising `EOFError`.

    Raises:
        ValueError: the number has more than 64 bits.
        EOFError: the file ends before or within the number.
    """
    value = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            if may_end and shift == 0:
                return None
            raise EOFError("it ends in the middle of a field")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("it has a number of more than 64 bits")
