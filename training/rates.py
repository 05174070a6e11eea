"""Learning rates: smaller toward the stem, rising and falling over the steps, and really in the optimizer."""

from __future__ import annotations

import math
from typing import Any

import timm.optim
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from training.network import Network

_LEAST_SCALE = 0.01
"""No layer learns slower than this share of the head's rate: in deep networks the product of the factors would freeze the stem."""


def layered_optimizer(network: Network, lr: float, weight_decay: float, layer_decay: float) -> AdamW:
    """AdamW over all layers, the head at `lr`, each layer below at `layer_decay` times the rate of the one above it.

    Layers are timm's, as its `group_matcher` counts them (blocks, where there are blocks); the idea is ULMFiT's
    discriminative fine-tuning (Howard and Ruder 2018, arXiv:1801.06146, section 3.2). Biases and norms are not decayed.

    timm writes a factor, `lr_scale`, that only its own schedulers read. Here it becomes each group's `lr`.
    """
    groups: list[dict[str, Any]] = timm.optim.param_groups_layer_decay(  # type: ignore[attr-defined]
        network.backbone, weight_decay, layer_decay=layer_decay
    )
    below_head = 1.0 if network.head is None else layer_decay  # the backbone's own head is its last layer
    for group in groups:
        group["lr"] = lr * max(below_head * group.pop("lr_scale"), _LEAST_SCALE)
    if network.head is not None:
        groups += decayed_groups(network.head, lr, weight_decay)
    return AdamW(groups, lr=lr)


def decayed_groups(module: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """A module's parameters in two groups: matrices, which are decayed, and the rest, which are not."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "lr": lr, "weight_decay": 0.0},
    ]


def warm_up_and_cosine(optimizer: AdamW, steps: int, warm_up: float) -> LambdaLR:
    """Each group's rate rises in a line over the first `warm_up` share of `steps`, then falls to 0 along half a cosine.

    To be stepped after every optimizer step (Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5, one cycle).
    """
    rising = round(steps * warm_up)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))

    return LambdaLR(optimizer, factor)
