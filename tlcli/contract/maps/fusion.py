"""Fusion of the maps of several layers into one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tlcli.contract.images.heatmap import enlarge, to_unit


def fuse(maps: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Fuse the maps of several layers.

    Each map is scaled to [0, 1] and upsampled to the largest height and width. The result is their maximum at every position.

    Args:
        maps: one array per layer, float32 `[N, K, h, w]`.

    Returns:
        Fused maps in [0, 1], float32 `[N, K, H, W]`. A constant map counts as zeros.
    """
    height = max(layer_maps.shape[2] for layer_maps in maps)
    width = max(layer_maps.shape[3] for layer_maps in maps)
    enlarged = [[[enlarge(values, width, height) for values in class_maps] for class_maps in to_unit(layer_maps)] for layer_maps in maps]
    return np.max(np.asarray(enlarged, dtype=np.float32), axis=0)  # type: ignore[no-any-return]
