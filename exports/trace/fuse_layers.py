"""Fusion of the maps of several layers, as in torch-cam.

Each map is scaled to [0, 1] and upsampled to the largest map's size; the result is their maximum at every position.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def fuse(maps: Sequence[Tensor]) -> Tensor:
    """Fuse maps `[N, K, h_i, w_i]` into one map `[N, K, h, w]` with values in [0, 1], where h and w are the largest height and width."""
    height, width = max(values.shape[-2] for values in maps), max(values.shape[-1] for values in maps)
    enlarged = [
        values
        if (values.shape[-2], values.shape[-1]) == (height, width)
        else functional.interpolate(values, (height, width), mode="bilinear")
        for values in map(to_unit, maps)
    ]
    result = enlarged[0]
    for values in enlarged[1:]:
        result = torch.maximum(result, values)
    return result


def to_unit(values: Tensor) -> Tensor:
    """Scale each map `[h, w]` to [0, 1] by its own minimum and maximum. A constant map becomes zeros."""
    low, high = values.amin((-2, -1), keepdim=True), values.amax((-2, -1), keepdim=True)
    extent = high - low
    return torch.where(extent > 0, (values - low) / torch.where(extent > 0, extent, 1.0), 0.0)
