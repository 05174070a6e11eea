"""Optimizers with layer-wise learning rates, and the learning rate schedule."""

from __future__ import annotations

import math
from typing import Any

import timm.optim
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from tlcli.training.models.network import Network
from tlcli.training.settings.config import OptimizerName, Schedule

_LEAST_SCALE = 0.01
"""Minimum learning rate of a layer, relative to the head. Without it, the decay factors of a deep network would freeze the stem."""


def layered_optimizer(network: Network, lr: float, weight_decay: float, layer_decay: float, name: OptimizerName = "adamw") -> Optimizer:
    """Create an optimizer over all layers with layer-wise learning rate decay.

    The head trains at `lr`, and each layer at `layer_decay` times the rate of the layer above it (discriminative fine-tuning, from
    ULMFiT: Howard and Ruder 2018, arXiv:1801.06146, section 3.2). Layers are defined by timm's `group_matcher`, which groups parameters
    by block where the network has blocks. Biases and norms have no weight decay.

    timm sets a factor `lr_scale` that only its own schedulers read. Here, that factor is applied to the `lr` of each group.
    """
    groups: list[dict[str, Any]] = timm.optim.param_groups_layer_decay(  # type: ignore[attr-defined]
        network.backbone, weight_decay, layer_decay=layer_decay
    )
    below_head = 1.0 if network.head is None else layer_decay  # without a separate head, the backbone's last layer is the head
    for group in groups:
        group["lr"] = lr * max(below_head * group.pop("lr_scale"), _LEAST_SCALE)
    if network.head is not None:
        groups += decayed_groups(network.head, lr, weight_decay)
    return make_optimizer(name, groups, lr)


def decayed_groups(module: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trainable parameters of a module in two groups: tensors of two or more dimensions with weight decay, others without."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "lr": lr, "weight_decay": 0.0},
    ]


def make_optimizer(name: OptimizerName, groups: list[dict[str, Any]], lr: float) -> Optimizer:
    """Create a PyTorch optimizer by name. RMSprop uses Keras's defaults, and SGD uses timm's.

    Args:
        name: name of the optimizer.
        groups: parameter groups, each with an `lr` and a `weight_decay`.
        lr: default learning rate.
    """
    if name == "adamw":
        return AdamW(groups, lr=lr)
    if name == "adam":
        return Adam(groups, lr=lr)
    if name == "rmsprop":
        return RMSprop(groups, lr=lr, alpha=0.9, eps=1e-7)
    return SGD(groups, lr=lr, momentum=0.9, nesterov=True)


def rate_factor(schedule: Schedule, step: int, steps: int, warm_up: float) -> float:
    """Return the learning rate multiplier for a step. Steps are numbered from 0.

    The multiplier rises linearly over the first `warm_up * steps` steps. After that, `constant` stays at 1 and `cosine` falls to 0 along
    half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5, one cycle).
    """
    rising = round(steps * warm_up)
    if step < rising:
        return (step + 1) / (rising + 1)
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))
