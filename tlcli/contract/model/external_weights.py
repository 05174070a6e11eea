"""Reader for the external weight files of an ONNX file, without the onnx package.

A runtime would memory-map these files, and a process that accesses a mapped file after it was truncated is killed by SIGBUS. Therefore they
are read into memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from tlcli.contract.errors import ModelFileError
from tlcli.contract.model.onnx_metadata import read_entry, read_varint

# Field numbers of messages in onnx.proto, and the messages in them.
_TENSOR, _EXTERNAL_DATA = "tensor", 13
_FIELDS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node"},
    "graph": {1: "node", 5: _TENSOR, 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: _TENSOR, 6: "graph", 10: _TENSOR, 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {_EXTERNAL_DATA: "entry"},
    "entry": {},
}
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_DEEPEST = 64
_LONGEST = 4096
_LOCATION = "location"


def external_files(path: Path) -> dict[str, Path]:
    """Return the external weight files of an ONNX file, keyed by the names that it uses for them, in sorted order.

    Files outside the ONNX file's folder are omitted, because the runtime refuses to read them. The result is empty for a file that cannot
    be read or is not in ONNX format.
    """
    try:
        with path.open("rb") as file:
            names = sorted(set(_locations(file, "model", os.fstat(file.fileno()).st_size, 0)))
    except (OSError, ValueError, EOFError):
        return {}
    folder = path.parent.resolve()
    return {name: path.parent / name for name in names if _is_below(path.parent / name, folder)}


def read_external_files(path: Path) -> dict[str, bytes]:
    """Return the contents of an ONNX file's external weight files by name. Missing files are omitted.

    Raises:
        ModelFileError: an existing weight file cannot be read.
    """
    contents = {}
    for name, file in external_files(path).items():
        if file.is_file():
            try:
                contents[name] = file.read_bytes()
            except OSError as error:
                raise ModelFileError(f"{file}: {error.strerror or error}: expected the external weights of {path}") from error
    return contents


def _is_below(file: Path, folder: Path) -> bool:
    try:
        return file.resolve().is_relative_to(folder)
    except (OSError, ValueError, RuntimeError):
        return False


def _locations(file: BinaryIO, kind: str, end: int, depth: int) -> Iterator[str]:
    """Yield the external file names in the message between the file's current position and `end`. Large fields are skipped."""
    if depth > _DEEPEST:
        raise ValueError("messages nested too deeply")
    while file.tell() < end:
        tag = read_varint(file) or 0
        inner, wire_type = _FIELDS[kind].get(tag >> 3), tag & 7
        if wire_type == _LENGTH_DELIMITED:
            stop = (read_varint(file) or 0) + file.tell()
            if stop > end:
                raise EOFError("the file ends in the middle of a field")
            if inner == "entry":
                yield from _location(file.read(min(stop - file.tell(), _LONGEST)))
            elif inner is not None:
                yield from _locations(file, inner, stop, depth + 1)
            file.seek(stop)
        elif wire_type == _VARINT:
            read_varint(file)
        elif wire_type in (_FIXED64, _FIXED32):
            file.seek(8 if wire_type == _FIXED64 else 4, os.SEEK_CUR)
        else:
            raise ValueError(f"wire type {wire_type}")


def _location(entry: bytes) -> Iterator[str]:
    """Yield the value of an entry if its key is `location`."""
    key, value = read_entry(entry)
    if key == _LOCATION:
        yield value
