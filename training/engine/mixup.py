"""Mixup and CutMix: images of a batch combined, and their labels with them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torchvision.transforms import v2

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Map images `[N, 3, H, W]` and labels int64 `[N]` to images and class probabilities float `[N, C]`; draws from PyTorch's generator."""


def mixing(mixup: float, cutmix: float, classes: int) -> Mixing | None:
    """Return torchvision's mixup and CutMix with these alphas.

    With both alphas above 0, each batch picks one at random. Zhang et al. 2018, arXiv:1710.09412; Yun et al. 2019, arXiv:1905.04899.

    Returns:
        None if both are 0.
    """
    transforms: list[v2.Transform] = []
    if mixup:
        transforms.append(v2.MixUp(alpha=mixup, num_classes=classes))
    if cutmix:
        transforms.append(v2.CutMix(alpha=cutmix, num_classes=classes))
    return v2.RandomChoice(transforms) if transforms else None
