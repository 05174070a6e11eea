"""Tensors as the Open Inference Protocol writes them, free of protobuf: a name, a datatype, a shape, and values row by row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import RequestError

BOOL, UINT8, INT64, FP32, BYTES = "BOOL", "UINT8", "INT64", "FP32", "BYTES"

ANY_SIZE = -1
"""In a shape: whatever comes."""

_ON_THE_WIRE: dict[str, np.dtype[Any]] = {BOOL: np.dtype("u1"), UINT8: np.dtype("u1"), INT64: np.dtype("<i8"), FP32: np.dtype("<f4")}
_HERE: dict[np.dtype[Any], str] = {np.dtype(np.int64): INT64, np.dtype(np.float32): FP32}
_PART = 10_000
"""Values that are read one by one at a time."""

_LENGTH_BYTES = 4
"""In front of each element of a BYTES tensor, little-endian."""


_MAX_DIMENSIONS = 8


def check_shape(where: str, shape: Sequence[int]) -> None:
    """Look at a shape before anything is done with it.

    Raises:
        RequestError: too many dimensions, or a size that 64 bits do not hold.
    """
    if len(shape) > _MAX_DIMENSIONS:
        raise RequestError(f"{where}: its shape has {len(shape):,} dimensions, no tensor here has more than {_MAX_DIMENSIONS}")
    if any(not -(2**63) <= size < 2**63 for size in shape):
        raise RequestError(f"{where}: its shape holds a number of more than 64 bits: name sizes that came")


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a model takes or gives; `ANY_SIZE` in its shape stands for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.datatype} {list(self.shape)}"


@dataclass(frozen=True, eq=False)
class InputTensor:
    """A tensor that came. Its values are read when they are asked for, after all that costs less was looked at.

    raw: the values, little-endian, each element of BYTES behind its length; None where they came in `typed`.
    typed: the values, one by one.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes | None
    typed: Sequence[bool] | Sequence[int] | Sequence[bytes] = ()

    def check(self, *specs: TensorSpec) -> None:
        """Datatype, shape, and how much came.

        Args:
            specs: it must be one of them; all of one datatype.

        Raises:
            RequestError: it is none of them, or another number of values came than its shape has.
        """
        if any(size < 1 for size in self.shape):
            raise RequestError(f"input {self.name!r}: its shape is {list(self.shape)}: name sizes that came, 1 or more each")
        if self.datatype != specs[0].datatype or not any(_fits(self.shape, spec.shape) for spec in specs):
            raise RequestError(f"input {self.name!r}: {' or '.join(map(str, specs))} was expected, {self.datatype} {list(self.shape)} came")
        if self.raw is None:
            if len(self.typed) != self.size:
                raise RequestError(
                    f"input {self.name!r}: its shape {list(self.shape)} has {self.size:,} values, its contents hold {len(self.typed):,}"
                )
        elif self.datatype != BYTES and len(self.raw) != self.size * _ON_THE_WIRE[self.datatype].itemsize:
            raise RequestError(
                f"input {self.name!r}: {self.datatype} {list(self.shape)} is {self.size * _ON_THE_WIRE[self.datatype].itemsize:,} bytes,"
                f" its raw contents are {len(self.raw):,}"
            )

    @property
    def size(self) -> int:
        """How many values its shape has."""
        return math.prod(self.shape)

    def numbers(self) -> npt.NDArray[np.integer[Any]]:
        """The values of a tensor that was checked, in its shape; BOOL as 0 and 1, or what came for 1.

        Raises:
            RequestError: a value that the datatype does not hold.
        """
        kind = _ON_THE_WIRE[self.datatype]
        if self.raw is not None:
            return np.frombuffer(self.raw, kind).reshape(self.shape)
        # In parts, between which other threads have their turn.
        parts = [np.array(self.typed[start : start + _PART], np.int64) for start in range(0, len(self.typed), _PART)]
        values = np.concatenate(parts)
        limits = np.iinfo(kind)
        if not limits.min <= values.min() <= values.max() <= limits.max:
            raise RequestError(
                f"input {self.name!r}: {self.datatype} holds {limits.min} to {limits.max}, {values.min()} to {values.max()} came"
            )
        numbers: npt.NDArray[np.integer[Any]] = values.astype(kind).reshape(self.shape)
        return numbers

    def elements(self) -> list[bytes]:
        """The elements of a BYTES tensor that was checked, row by row.

        Raises:
            RequestError: lengths that do not add up to what came.
        """
        if self.raw is None:
            return [bytes(element) for element in self.typed]
        found: list[bytes] = []
        start = 0
        while start < len(self.raw):
            begin = start + _LENGTH_BYTES
            end = begin + int.from_bytes(self.raw[start:begin], "little")
            if end > len(self.raw) or begin > len(self.raw) or len(found) == self.size:
                break
            found.append(self.raw[begin:end])
            start = end
        if start != len(self.raw) or len(found) != self.size:
            raise RequestError(
                f"input {self.name!r}: its shape has {self.size:,} elements; its {len(self.raw):,} raw bytes are other than that:"
                f" each element goes behind its length, {_LENGTH_BYTES} bytes, little-endian"
            )
        return found


@dataclass(frozen=True)
class OutputTensor:
    """A tensor that is answered; `raw` as in `InputTensor`."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes

    @classmethod
    def of(cls, name: str, values: npt.NDArray[np.float32] | npt.NDArray[np.int64]) -> OutputTensor:
        """An array, of float32 or int64."""
        datatype = _HERE[values.dtype]
        return cls(name, datatype, values.shape, values.astype(_ON_THE_WIRE[datatype], copy=False).tobytes())


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    sizes = zip(shape, wanted, strict=False)
    return len(shape) == len(wanted) and all(expected in (came, ANY_SIZE) for came, expected in sizes)
