"""Mixup and CutMix, which combine the images of a batch and their labels."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torchvision.transforms import v2

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Function that mixes images `[N, 3, H, W]` with labels, int64 `[N]`, into images and class probabilities, float `[N, C]`.

It uses PyTorch's global random generator.
"""


def mixing(mixup: float, cutmix: float, classes: int) -> Mixing | None:
    """Return torchvision's mixup or CutMix transform with the given alphas.

    If both alphas are above 0, one of the two is chosen at random for each batch (Zhang et al. 2018, arXiv:1710.09412; Yun et al. 2019,
    arXiv:1905.04899).

    Returns:
        The transform, or None if both alphas are 0.
    """
    transforms: list[v2.Transform] = []
    if mixup:
        transforms.append(v2.MixUp(alpha=mixup, num_classes=classes))
    if cutmix:
        transforms.append(v2.CutMix(alpha=cutmix, num_classes=classes))
    return v2.RandomChoice(transforms) if transforms else None
