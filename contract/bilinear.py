"""Bilinear resizing: between pixel centres, edges clamped, PyTorch's `align_corners=False`.

Without matrix products: those of this size would wake the BLAS library's threads, which then spin on the cores that
ONNX Runtime computes with.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

Taps = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]


@functools.lru_cache(maxsize=64)
def taps(source: int, target: int) -> Taps:
    """What each of `target` values in a row is made of, out of `source` values.

    Returns:
        The neighbour before, the neighbour after, and the share of the latter, in [0, 1]; `[target]` each, not to be written to.
    """
    places = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0)
    before = np.minimum(places.astype(np.int64), source - 1)
    return before, np.minimum(before + 1, source - 1), (places - before).astype(np.float32)


def resize(values: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    """Maps `[..., h, w]` to `[..., height, width]`, in their own precision. A constant map stays constant to the bit."""
    before, after, share = taps(values.shape[-1], width)
    left = values[..., before]
    across = left + (values[..., after] - left) * share
    before, after, share = taps(values.shape[-2], height)
    top = across[..., before, :]
    resized: npt.NDArray[Any] = top + (across[..., after, :] - top) * share[:, None]
    return resized
