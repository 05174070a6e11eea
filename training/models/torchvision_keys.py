"""torchvision's checkpoints of MobileNetV2, MobileNetV3 and EfficientNet under timm's names, which timm does not convert."""

from __future__ import annotations

from collections.abc import Mapping

from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from torch import Tensor, nn

_FIRST = "features.0.0.weight"
"""Of all three networks; timm calls it `conv_stem.weight`."""

TORCHVISION_EPSILON = 1e-3
"""Of the batch norms in torchvision's MobileNetV3 and in its EfficientNets from B5 upward."""


def is_torchvisions(tensors: Mapping[str, Tensor], backbone: nn.Module) -> bool:
    """True if the names are torchvision's for one of these networks, and the backbone is timm's of that family."""
    return _FIRST in tensors and isinstance(backbone, (EfficientNet, MobileNetV3))


def to_timm(tensors: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor] | None:
    """Rename the tensors: both libraries define the same layers in the same order.

    Args:
        tensors: torchvision's, with the classifier or without.
        backbone: timm's network.

    Returns:
        None where number or sizes differ: another network.
    """
    own = backbone.state_dict()
    names = list(own)
    if len(tensors) != len(own):
        return None
    if any(tensor.numel() != own[name].numel() for name, tensor in zip(names, tensors.values(), strict=True)):
        return None
    return {name: tensor.reshape(own[name].shape) for name, tensor in zip(names, tensors.values(), strict=True)}


def needs_epsilon(backbone: nn.Module, name: str) -> bool:
    """True if torchvision's batch norms of this network have another epsilon than those of timm's network as it was built."""
    return any(module.eps != epsilon_of(backbone, name) for module in backbone.modules() if isinstance(module, nn.BatchNorm2d))


def epsilon_of(backbone: nn.Module, name: str) -> float:
    """The epsilon of torchvision's batch norms in the network that timm calls `name`."""
    others = isinstance(backbone, MobileNetV3) or any(f"efficientnet_b{number}" in name for number in (5, 6, 7))
    return TORCHVISION_EPSILON if others else 1e-5
