"""Conversion of torchvision checkpoints for MobileNetV2, MobileNetV3 and EfficientNet, which timm does not convert itself."""

from __future__ import annotations

from collections.abc import Mapping

from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from torch import Tensor, nn

_FIRST = "features.0.0.weight"
"""Name of the first tensor in all three networks, which is `conv_stem.weight` in timm."""

TORCHVISION_EPSILON = 1e-3
"""Batch norm epsilon of torchvision's MobileNetV3 and of its EfficientNets from B5 upward."""


def is_torchvisions(tensors: Mapping[str, Tensor], backbone: nn.Module) -> bool:
    """Return True if the tensors have torchvision's names for one of these networks, and the backbone is a timm network of that family."""
    return _FIRST in tensors and isinstance(backbone, (EfficientNet, MobileNetV3))


def to_timm(tensors: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor] | None:
    """Rename torchvision tensors to timm's names. Both libraries define the same layers in the same order.

    Args:
        tensors: torchvision tensors, with or without the classifier.
        backbone: corresponding timm network.

    Returns:
        The renamed tensors, or None if their number or sizes differ from the backbone's.
    """
    own = backbone.state_dict()
    names = list(own)
    if len(tensors) != len(own):
        return None
    if any(tensor.numel() != own[name].numel() for name, tensor in zip(names, tensors.values(), strict=True)):
        return None
    return {name: tensor.reshape(own[name].shape) for name, tensor in zip(names, tensors.values(), strict=True)}


def needs_epsilon(backbone: nn.Module, name: str) -> bool:
    """Return True if torchvision's batch norm epsilon for this network differs from that of `backbone`."""
    return any(module.eps != epsilon_of(backbone, name) for module in backbone.modules() if isinstance(module, nn.BatchNorm2d))


def epsilon_of(backbone: nn.Module, name: str) -> float:
    """Return torchvision's batch norm epsilon for the network with the timm name `name`."""
    is_larger = isinstance(backbone, MobileNetV3) or any(f"efficientnet_b{number}" in name for number in (5, 6, 7))
    return TORCHVISION_EPSILON if is_larger else 1e-5
