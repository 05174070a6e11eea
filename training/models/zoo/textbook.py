"""CNNs from courses and textbooks, for training from random weights. Registered with timm on import."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from timm.models import PretrainedCfg, generate_default_cfgs
from torch import nn

from tlcli.training.models.zoo.base import HiddenLayers, ZooBackbone
from tlcli.training.models.zoo.register import register


class SimpleCNN(ZooBackbone):
    """Small CNN of three blocks, as used in notebooks for MNIST, Fashion-MNIST and CIFAR-10. Each block halves the image size.

    A block consists of a 3x3 convolution, 2x2 max pooling, batch norm and ReLU, then another 3x3 convolution, batch norm and ReLU, and
    dropout. Because of the early pooling (as in Jordan 2024, arXiv:2404.00498), an image of 28x28 pixels takes 13 million multiplications,
    less than half of the number with both convolutions before the pooling. The head is a linear layer on the spatial mean. Use the head
    `mlp:128` for the flattening and hidden layer of the notebooks.
    """

    classifier_name = "classifier"
    pool_size = (4, 4)

    def __init__(self, num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.1) -> None:
        """Create the network with random weights.

        Args:
            num_classes: number of classes; 0 for no classifier.
            in_chans: number of input channels.
            drop_rate: dropout probability at the end of each block.
        """
        super().__init__()
        widths = (in_chans, 32, 64, 128)
        self.features = nn.Sequential()
        for inputs, outputs in pairwise(widths):
            block = nn.Sequential()
            block.add_module("conv1", nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
            block.add_module("pool", nn.MaxPool2d(2))
            block.add_module("norm1", nn.BatchNorm2d(outputs))
            block.add_module("act1", nn.ReLU())
            block.add_module("conv2", nn.Conv2d(outputs, outputs, 3, padding=1, bias=False))
            block.add_module("norm2", nn.BatchNorm2d(outputs))
            block.add_module("act2", nn.ReLU())
            block.add_module("drop", nn.Dropout(drop_rate))
            self.features.append(block)
        self.num_features = self.head_hidden_size = widths[-1]
        self.reset_classifier(num_classes)


class LeNet5(HiddenLayers):
    """LeNet-5 of LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition", section II.B, with its layer names.

    As is common today, ReLU replaces the scaled tanh, max pooling replaces the trained subsampling of S2 and S4, and a linear layer
    replaces the output layer. Each map of C3 is connected to all maps of S2. C5, which covers the entire map, is a linear layer.
    """

    classifier_name = "classifier.output"
    pool_size = (5, 5)

    def __init__(self, num_classes: int = 10, in_chans: int = 3) -> None:
        """Create the network with random weights.

        Args:
            num_classes: number of classes; 0 for no classifier.
            in_chans: number of input channels.
        """
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("c1", nn.Conv2d(in_chans, 6, 5))
        self.features.add_module("act1", nn.ReLU())
        self.features.add_module("s2", nn.MaxPool2d(2))
        self.features.add_module("c3", nn.Conv2d(6, 16, 5))
        self.features.add_module("act3", nn.ReLU())
        self.features.add_module("s4", nn.MaxPool2d(2))
        self.avgpool = nn.AdaptiveAvgPool2d(self.pool_size)
        self.classifier = nn.Sequential()
        self.classifier.add_module("c5", nn.Linear(16 * 5 * 5, 120))
        self.classifier.add_module("act5", nn.ReLU())
        self.classifier.add_module("f6", nn.Linear(120, 84))
        self.classifier.add_module("act6", nn.ReLU())
        self.classifier.add_module("output", nn.Identity())
        self.num_features, self.head_hidden_size = 16, 84
        self.reset_classifier(num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the parameter-name patterns, with one group for each hidden layer; see `ZooBackbone.group_matcher`."""
        return {"stem": r"^features\.c1\.", "blocks": r"^features\.c(\d)\.", "hidden": r"^classifier\.[cf](\d)\."}


class ZFNet(HiddenLayers):
    """ZFNet of Zeiler and Fergus 2013, "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901, figure 3.

    It is an AlexNet for a single device with smaller strides in the first two layers. As in this project's AlexNet, contrast normalization
    is omitted.
    """

    classifier_name = "classifier.fc8"
    pool_size = (6, 6)

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.5) -> None:
        """Create the network with random weights.

        Args:
            num_classes: number of classes; 0 for no classifier.
            in_chans: number of input channels.
            drop_rate: dropout probability before fc7 and fc8.
        """
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("conv1", nn.Conv2d(in_chans, 96, 7, stride=2, padding=1))
        self.features.add_module("act1", nn.ReLU())
        self.features.add_module("pool1", nn.MaxPool2d(3, stride=2, ceil_mode=True))
        self.features.add_module("conv2", nn.Conv2d(96, 256, 5, stride=2))
        self.features.add_module("act2", nn.ReLU())
        self.features.add_module("pool2", nn.MaxPool2d(3, stride=2, ceil_mode=True))
        for number, (inputs, outputs) in enumerate(((256, 384), (384, 384), (384, 256)), start=3):
            self.features.add_module(f"conv{number}", nn.Conv2d(inputs, outputs, 3, padding=1))
            self.features.add_module(f"act{number}", nn.ReLU())
        self.features.add_module("pool5", nn.MaxPool2d(3, stride=2, ceil_mode=True))
        self.avgpool = nn.AdaptiveAvgPool2d(self.pool_size)
        self.classifier = nn.Sequential()
        for number, inputs in ((6, 256 * 6 * 6), (7, 4096)):
            self.classifier.add_module(f"fc{number}", nn.Linear(inputs, 4096))
            self.classifier.add_module(f"act{number}", nn.ReLU())
            self.classifier.add_module(f"drop{number}", nn.Dropout(drop_rate))
        self.classifier.add_module("fc8", nn.Identity())
        self.num_features, self.head_hidden_size = 256, 4096
        self.reset_classifier(num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the parameter-name patterns, with one group for each hidden layer; see `ZooBackbone.group_matcher`."""
        return {"stem": r"^features\.conv1\.", "blocks": r"^features\.conv(\d)\.", "hidden": r"^classifier\.fc([67])\."}


BACKBONES: dict[str, type[ZooBackbone]] = {"simple_cnn": SimpleCNN, "lenet5": LeNet5, "zfnet": ZFNet}

_SMALL: dict[str, Any] = {"input_size": (3, 32, 32), "crop_pct": 1.0, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "num_classes": 10}
_INPUTS: dict[str, dict[str, Any]] = {"simple_cnn": _SMALL, "lenet5": _SMALL, "zfnet": {}}
_FIRST = {"simple_cnn": "features.0.conv1", "lenet5": "features.c1", "zfnet": "features.conv1"}

default_cfgs = generate_default_cfgs(
    {
        name: PretrainedCfg(pool_size=family.pool_size, first_conv=_FIRST[name], classifier=family.classifier_name, **_INPUTS[name])
        for name, family in BACKBONES.items()
    }
)
"""Default configurations, in the variable that timm expects. There are no official weights."""

for _name, _family in BACKBONES.items():
    register(__name__, _name, _family)
