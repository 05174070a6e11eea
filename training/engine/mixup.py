"""Images of a batch laid over each other, and their labels with them: mixup and CutMix."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torchvision.transforms import v2

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Images `[N, 3, H, W]` and classes int64 `[N]` to images and shares of classes float `[N, C]`; draws from PyTorch's generator."""


def mixing(mixup: float, cutmix: float, classes: int) -> Mixing | None:
    """torchvision's, with these alphas; with both above 0 each batch draws one; None if both are 0.

    Zhang et al. 2018, arXiv:1710.09412; Yun et al. 2019, arXiv:1905.04899.
    """
    chosen = [
        one
        for alpha, one in (
            (mixup, v2.MixUp(alpha=mixup or 1.0, num_classes=classes)),
            (cutmix, v2.CutMix(alpha=cutmix or 1.0, num_classes=classes)),
        )
        if alpha
    ]
    return v2.RandomChoice(chosen) if chosen else None
