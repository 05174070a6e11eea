"""Check that the positions of a layer's output correspond to positions of the image, by changing the image at a few places."""

from __future__ import annotations

import torch
from torch import Tensor

from tlcli.training.models.feature_layout import FeatureLayout

_PLACES = ((0.15, 0.2), (0.2, 0.85), (0.8, 0.15), (0.85, 0.8), (0.5, 0.5))
"""Centres of the changed blocks as fractions of the height and the width. No two of them are exchanged by a transposition."""
_BLOCK = 0.2
"""Size of a block as a fraction of the image's size."""
_ENOUGH = 4
"""Number of places, of the five, that must be found again. In a map of 2 x 2 the last place shares its position with another."""


def probe_images(height: int, width: int) -> Tensor:
    """Return normalized images, float32 `[6, 3, H, W]`: noise, and five copies of it that differ from it in one block each."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(3, height, width, generator=generator)
    images = base.repeat(1 + len(_PLACES), 1, 1, 1)
    for image, (row, column) in zip(images[1:], _PLACES, strict=True):
        rows, columns = _block(row, height), _block(column, width)
        image[:, rows, columns] = torch.randn(3, rows.stop - rows.start, columns.stop - columns.start, generator=generator)
    return images


def is_local(output: Tensor, layout: FeatureLayout) -> bool:
    """Return True if a layer's output for `probe_images` has the given layout.

    The block that changes a position most, relative to its effect on all positions, must be the one at the corresponding place of the
    image. Comparing blocks at one position, rather than positions for one block, also works after global attention, where all tokens
    change and a few change most, whatever is changed in the image.
    """
    maps = layout.to_map(output).float()
    changes = (maps[1:] - maps[:1]).abs().mean(1)  # [places, h, w]
    changes = changes / changes.mean((-2, -1), keepdim=True).clamp(min=torch.finfo(changes.dtype).tiny)
    found = 0
    for number, (row, column) in enumerate(_PLACES):
        at_place = changes[:, int(row * layout.height), int(column * layout.width)]
        found += int(at_place.argmax()) == number and bool(at_place[number] > 0)
    return found >= _ENOUGH


def _block(centre: float, size: int) -> slice:
    half = max(1, round(_BLOCK * size / 2))
    middle = int(centre * size)
    return slice(max(0, middle - half), min(size, middle + half))
