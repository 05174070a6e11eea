"""Tensors of the Open Inference Protocol, without protobuf: name, datatype, shape, and values in row-major order."""

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
"""Placeholder for a dimension of any size in the shape of a `TensorSpec`."""

_WIRE_DTYPES: dict[str, np.dtype[Any]] = {BOOL: np.dtype("u1"), UINT8: np.dtype("u1"), INT64: np.dtype("<i8"), FP32: np.dtype("<f4")}
_DATATYPES: dict[np.dtype[Any], str] = {np.dtype(np.int64): INT64, np.dtype(np.float32): FP32}
_CHUNK = 10_000
"""Number of typed values to convert at a time."""

_LENGTH_BYTES = 4
"""Size in bytes of the little-endian length before each element of a BYTES tensor."""


_MAX_DIMENSIONS = 8


def check_shape(where: str, shape: Sequence[int]) -> None:
    """Check that a shape has at most eight dimensions and that every size fits in 64 bits.

    Raises:
        RequestError: the shape has too many dimensions, or a size that does not fit in 64 bits.
    """
    if len(shape) > _MAX_DIMENSIONS:
        raise RequestError(f"{where}: the shape has {len(shape):,} dimensions: at most {_MAX_DIMENSIONS} are supported")
    if any(not -(2**63) <= size < 2**63 for size in shape):
        raise RequestError(f"{where}: the shape contains a number of more than 64 bits: send the shape of the data")


@dataclass(frozen=True)
class TensorSpec:
    """Specification of a model's input or output. Dimensions of any size are `ANY_SIZE` in the shape."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.datatype} {list(self.shape)}"


@dataclass(frozen=True, eq=False)
class InputTensor:
    """Input tensor of a request. Its values are decoded on demand, after all cheaper checks have passed.

    raw: values as little-endian bytes; each element of a BYTES tensor is preceded by its length. None if the values are in `typed`.
    typed: values as a list, if `raw` is None.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes | None
    typed: Sequence[bool] | Sequence[int] | Sequence[bytes] = ()

    def check(self, *specs: TensorSpec) -> None:
        """Check the datatype, the shape and the number of values.

        Args:
            specs: accepted specifications of the tensor, all of the same datatype.

        Raises:
            RequestError: the tensor matches no spec, or its number of values does not match its shape.
        """
        if any(size < 1 for size in self.shape):
            raise RequestError(f"input {self.name!r}: shape {list(self.shape)}: expected sizes of 1 or more")
        if self.datatype != specs[0].datatype or not any(_fits(self.shape, spec.shape) for spec in specs):
            raise RequestError(f"input {self.name!r}: expected {' or '.join(map(str, specs))}, not {self.datatype} {list(self.shape)}")
        if self.raw is None:
            if len(self.typed) != self.size:
                raise RequestError(
                    f"input {self.name!r}: shape {list(self.shape)} needs {self.size:,} values, but the contents hold {len(self.typed):,}"
                )
        elif self.datatype != BYTES and len(self.raw) != self.size * _WIRE_DTYPES[self.datatype].itemsize:
            raise RequestError(
                f"input {self.name!r}: {self.datatype} {list(self.shape)} needs"
                f" {self.size * _WIRE_DTYPES[self.datatype].itemsize:,} bytes, but the raw contents hold {len(self.raw):,}"
            )

    @property
    def size(self) -> int:
        """Number of values that a tensor of this shape holds."""
        return math.prod(self.shape)

    def numbers(self) -> npt.NDArray[np.integer[Any]]:
        """Return the values of a checked tensor as an array of its shape. In a BOOL tensor, 0 is false and any other number is true.

        Raises:
            RequestError: a value does not fit in the datatype.
        """
        kind = _WIRE_DTYPES[self.datatype]
        if self.raw is not None:
            return np.frombuffer(self.raw, kind).reshape(self.shape)
        # Converted in chunks so that other threads can run in between.
        chunks = [np.array(self.typed[start : start + _CHUNK], np.int64) for start in range(0, len(self.typed), _CHUNK)]
        values = np.concatenate(chunks)
        limits = np.iinfo(kind)
        if not limits.min <= values.min() <= values.max() <= limits.max:
            raise RequestError(
                f"input {self.name!r}: values from {values.min()} to {values.max()}: {self.datatype} holds {limits.min} to {limits.max}"
            )
        numbers: npt.NDArray[np.integer[Any]] = values.astype(kind).reshape(self.shape)
        return numbers

    def elements(self) -> list[bytes]:
        """Return the elements of a checked BYTES tensor, row by row.

        Raises:
            RequestError: the raw contents do not consist of the expected number of elements, each after its length.
        """
        if self.raw is None:
            return [bytes(element) for element in self.typed]
        elements: list[bytes] = []
        start = 0
        while start < len(self.raw):
            begin = start + _LENGTH_BYTES
            end = begin + int.from_bytes(self.raw[start:begin], "little")
            if end > len(self.raw) or begin > len(self.raw) or len(elements) == self.size:
                break
            elements.append(self.raw[begin:end])
            start = end
        if start != len(self.raw) or len(elements) != self.size:
            raise RequestError(
                f"input {self.name!r}: the {len(self.raw):,} raw bytes do not hold {self.size:,} elements:"
                f" send each element after its length, {_LENGTH_BYTES} bytes, little-endian"
            )
        return elements


@dataclass(frozen=True)
class OutputTensor:
    """Output tensor of a response. `raw` is encoded as in `InputTensor`."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes

    @classmethod
    def of(cls, name: str, values: npt.NDArray[np.float32] | npt.NDArray[np.int64]) -> OutputTensor:
        """Create an output tensor from a float32 or int64 array."""
        datatype = _DATATYPES[values.dtype]
        return cls(name, datatype, values.shape, values.astype(_WIRE_DTYPES[datatype], copy=False).tobytes())


def _fits(shape: tuple[int, ...], spec: tuple[int, ...]) -> bool:
    return len(shape) == len(spec) and all(expected in (size, ANY_SIZE) for size, expected in zip(shape, spec, strict=True))
