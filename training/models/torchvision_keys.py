"""Conversion of torchvision's checkpoints of MobileNetV2, MobileNetV3 and EfficientNet, which timm does not convert itself."""

from __future__ import annotations

from collections.abc import Mapping

from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from torch import Tensor, nn

_FIRST = "features.0.0.weight"
"""First tensor of all three networks; `conv_stem.weight` in timm."""

TORCHVISION_EPSILON = 1e-3
"""Epsilon of the batch norms in torchvision's MobileNetV3, and in its EfficientNets from B5 upward."""


def is_torchvisions(tensors: Mapping[str, Tensor], backbone: nn.Module) -> bool:
    """Return True if the names are torchvision's for one of these networks, and the backbone is timm's network of that family."""
    return _FIRST in tensors and isinstance(backbone, (EfficientNet, MobileNetV3))


def to_timm(tensors: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor] | None:
    """Rename torchvision's tensors to timm's names: both libraries define the same layers in the same order.

    Args:
        tensors: torchvision's tensors, with or without the classifier.
        backbone: timm's network.

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
    """Return True if the epsilon of torchvision's batch norms differs from that of `backbone`."""
    return any(module.eps != epsilon_of(backbone, name) for module in backbone.modules() if isinstance(module, nn.BatchNorm2d))


def epsilon_of(backbone: nn.Module, name: str) -> float:
    """Return the epsilon of torchvision's batch norms in the network that timm calls `name`."""
    is_larger = isinstance(backbone, MobileNetV3) or any(f"efficientnet_b{number}" in name for number in (5, 6, 7))
    return TORCHVISION_EPSILON if is_larger else 1e-5
