"""Maps of several layers as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from contract import bilinear


def fuse(maps: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """The layers' maps, each scaled to [0, 1] and enlarged to the largest of them; of their values the largest at every position.

    Args:
        maps: a layer each, float32 `[N, K, h, w]`.

    Returns:
        float32 `[N, K, H, W]`, in [0, 1]. A map that is constant counts as zeros.
    """
    height = max(one.shape[2] for one in maps)
    width = max(one.shape[3] for one in maps)
    fused: npt.NDArray[np.float32] = np.max([bilinear.resize(_to_unit(one), height, width) for one in maps], axis=0)
    return fused


def _to_unit(maps: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Each map by its own minimum and maximum, as `contract.rendering.to_unit` scales one."""
    low = maps.min(axis=(2, 3), keepdims=True).astype(np.float64)
    span = maps.max(axis=(2, 3), keepdims=True) - low
    usable = np.isfinite(span) & (span > 0)
    with np.errstate(invalid="ignore"):
        unit: npt.NDArray[np.float32] = np.where(usable, (maps - low) / np.where(usable, span, 1), 0).astype(np.float32)
    return unit
