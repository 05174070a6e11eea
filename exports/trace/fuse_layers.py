"""Maps of several layers made into one, as torch-cam does: each scaled to [0, 1], enlarged to the largest, the maximum taken."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def fuse(maps: Sequence[Tensor]) -> Tensor:
    """`[N, K, h_i, w_i]` each, to `[N, K, h, w]` in [0, 1], h and w the largest of theirs."""
    height, width = max(one.shape[-2] for one in maps), max(one.shape[-1] for one in maps)
    enlarged = [
        one if (one.shape[-2], one.shape[-1]) == (height, width) else functional.interpolate(one, (height, width), mode="bilinear")
        for one in map(to_unit, maps)
    ]
    result = enlarged[0]
    for one in enlarged[1:]:
        result = torch.maximum(result, one)
    return result


def to_unit(values: Tensor) -> Tensor:
    """Each map `[h, w]` by its own minimum and maximum; a constant one to zeros."""
    low, high = values.amin((-2, -1), keepdim=True), values.amax((-2, -1), keepdim=True)
    extent = high - low
    return torch.where(extent > 0, (values - low) / torch.where(extent > 0, extent, 1.0), 0.0)
