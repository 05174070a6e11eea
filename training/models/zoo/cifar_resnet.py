"""ResNets for CIFAR-10, registered with timm on import.

He et al. 2016, "Deep Residual Learning for Image Recognition", arXiv:1512.03385, section 4.2. Modules are named as in the most widely
used checkpoints, so that those load unchanged.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from timm.models import PretrainedCfg, generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional

from tlcli.training.models.zoo.base import ZooBackbone
from tlcli.training.models.zoo.register import register

DEPTHS = (20, 32, 44, 56)
"""Network depths, counted as layers with weights, 6n + 2. The paper's fifth depth, 110, is omitted."""

_WIDTHS = (16, 32, 64)


class OptionA(nn.Module):
    """Shortcut without parameters, which keeps every `stride`-th pixel of each row and column and pads the channels with zeros.

    The paper does not specify where the zeros go. Here, as in the checkpoints, half of them go on each side.
    """

    def __init__(self, missing: int, stride: int) -> None:
        """Create the shortcut.

        Args:
            missing: number of output channels minus number of input channels; must be even.
            stride: step between the pixels to keep.
        """
        super().__init__()
        self.missing, self.stride = missing, stride

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs `[N, c, h, w]` to `[N, c + missing, h / stride, w / stride]`, with sizes rounded up."""
        half = self.missing // 2
        return functional.pad(inputs[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))


class BasicBlock(nn.Module):
    """Residual block `relu(F(x) + shortcut(x))`, where F is two 3x3 convolutions, each with batch norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Create the block.

        Args:
            inputs, outputs: numbers of input and output channels.
            stride: stride of the first convolution.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else OptionA(outputs - inputs, stride)
        self.act2 = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """Map features `[N, inputs, h, w]` to `[N, outputs, h / stride, w / stride]`."""
        residual = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(inputs)))))
        return cast("Tensor", self.act2(residual + self.shortcut(inputs)))


class CifarResNet(ZooBackbone):
    """ResNet for CIFAR images.

    It consists of a 3x3 convolution, three stages of n blocks each at 32x32, 16x16 and 8x8 pixels, global average pooling and a linear
    layer.
    """

    body = ("conv1", "bn1", "act1", "layer1", "layer2", "layer3")
    classifier_name = "linear"
    pool_size = (8, 8)

    def __init__(self, depth: int, num_classes: int = 10, in_chans: int = 3) -> None:
        """Create the network with random weights.

        Args:
            depth: number of layers with weights, 6n + 2.
            num_classes: number of classes; 0 for no classifier.
            in_chans: number of input channels.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.act1 = nn.ReLU()
        channels = _WIDTHS[0]
        for number, width in enumerate(_WIDTHS, start=1):
            blocks = []
            for index in range((depth - 2) // 6):
                blocks.append(BasicBlock(channels, width, stride=2 if number > 1 and index == 0 else 1))
                channels = width
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        self.num_features = self.head_hidden_size = channels
        self.reset_classifier(num_classes)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Create a linear layer, initialized like the convolutions."""
        layer = nn.Linear(self.head_hidden_size, num_classes)
        nn.init.kaiming_normal_(layer.weight)
        return layer

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the parameter-name patterns of the layer groups; see `ZooBackbone.group_matcher`."""
        return {"stem": r"^(?:conv1|bn1)\.", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}


_CFG = PretrainedCfg(
    input_size=(3, 32, 32),
    crop_pct=1.0,
    num_classes=10,
    pool_size=CifarResNet.pool_size,
    first_conv="conv1",
    classifier=CifarResNet.classifier_name,
)
"""Default configuration. Mean and standard deviation are timm's defaults, the ImageNet values that the checkpoints were trained with."""

default_cfgs = generate_default_cfgs({f"cifar_resnet{depth}": _CFG for depth in DEPTHS})
"""Default configurations, in the variable that timm expects. There are no official weights."""

for _depth in DEPTHS:
    register(__name__, f"cifar_resnet{_depth}", partial(CifarResNet, _depth))
