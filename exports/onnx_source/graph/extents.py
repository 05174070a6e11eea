"""Extent of a value: its shape for one image, and which of its axes is the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Extent:
    """Shape of a value that depends on the images.

    dims: sizes for one image.
    batch: axis of the batch; for N images its size is `N * dims[batch]`.
    """

    dims: tuple[int, ...]
    batch: int

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.dims)

    @property
    def before(self) -> int:
        """Number of elements of the axes before the batch."""
        return int(np.prod(self.dims[: self.batch], dtype=np.int64))


def common_extent(two: Array, three: Array) -> Extent | None:
    """Return the extent of a value from its observations, or None if it has no single batch axis or holds no floats."""
    if two.dtype != np.float32 or two.ndim != three.ndim:
        return None
    axes = [axis for axis in range(two.ndim) if two.shape[axis] != three.shape[axis]]
    if len(axes) != 1 or two.shape[axes[0]] % 2 or two.shape[axes[0]] * 3 != three.shape[axes[0]] * 2:
        return None
    (axis,) = axes
    return Extent(tuple(size // 2 if number == axis else size for number, size in enumerate(two.shape)), axis)
