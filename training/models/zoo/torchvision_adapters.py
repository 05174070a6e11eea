"""torchvision's networks with timm's interface: torchvision's own modules under torchvision's own names, called in two steps."""

from __future__ import annotations

from typing import Any, cast

import torchvision
from torch import Tensor, nn

from tlcli.training.models.zoo.base import HiddenLayers, PartedBackbone

State = dict[str, Tensor]


class TorchvisionBackbone(PartedBackbone):
    """The parts of one of torchvision's networks. The names in its `state_dict` are torchvision's."""

    def __init__(self, name: str, num_classes: int = 1000, **settings: Any) -> None:
        """Take torchvision's network apart.

        Args:
            name: torchvision's.
            num_classes: 0 for no classifier.
            settings: arguments of torchvision's constructor.
        """
        super().__init__()
        network = torchvision.models.get_model(name, weights=None, num_classes=num_classes or 1, **settings)
        for child_name, child in network.named_children():
            self.add_module(child_name, child)
        classifier = self.get_submodule(self.classifier_name)
        width = classifier.in_features if isinstance(classifier, nn.Linear) else cast("nn.Conv2d", classifier).in_channels
        self.num_features = self.head_hidden_size = width
        self.num_classes = num_classes
        if not num_classes:
            self.reset_classifier(0)

    @staticmethod
    def converted(state: State, _: nn.Module) -> State:
        """A checkpoint's tensors, without those that only training on ImageNet needed."""
        return state


class AlexNet(HiddenLayers, TorchvisionBackbone):
    """Krizhevsky 2014, arXiv:1404.5997. fc6 and fc7 stand in `classifier` with the last layer."""

    classifier_name = "classifier.6"
    pool_size = (6, 6)

    def __init__(self, name: str, num_classes: int = 1000, **settings: Any) -> None:
        super().__init__(name, num_classes, **settings)
        self.num_features = cast("nn.Conv2d", self.get_submodule("features.10")).out_channels


class SqueezeNet(TorchvisionBackbone):
    """Iandola et al. 2016, arXiv:1602.07360. The classifier is a convolution on the map, and behind it stand a ReLU and the pooling.

    So what it takes is no vector, and no linear layer on pooled features is the same function.
    """

    classifier_name = "classifier.1"
    pool_size = (13, 13)

    def get_classifier(self) -> nn.Module:
        """The convolution with what stands behind it, since it cannot be used without."""
        return cast("nn.Module", self.classifier)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """A convolution, its weights drawn as torchvision draws them."""
        layer = nn.Conv2d(self.num_features, num_classes, kernel_size=1)
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(cast("Tensor", layer.bias))
        return layer

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """`[N, c, h, w]` to logits `[N, C]`, or, with `pre_logits`, to pooled features `[N, c]`."""
        if pre_logits:
            return self.pool(features)
        return cast("Tensor", cast("nn.Module", self.classifier)(features).flatten(1))


class ShuffleNetV2(TorchvisionBackbone):
    """Ma et al. 2018, arXiv:1807.11164."""

    body = ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5")

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """See `PartedBackbone`."""
        return {"stem": r"^conv1\.", "blocks": r"^stage(\d+)\.(\d+)", "top": r"^conv5\."}


class MNASNet(TorchvisionBackbone):
    """Tan et al. 2018, arXiv:1807.11626, B1.

    The first eight children of `layers` are the stem, the last three the step to the classifier's width.
    """

    body = ("layers",)
    classifier_name = "classifier.1"

    def pool(self, features: Tensor) -> Tensor:
        """With the dropout that stands before the classifier."""
        return cast("Tensor", cast("nn.Sequential", self.classifier)[0](super().pool(features)))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """See `PartedBackbone`."""
        return {"stem": r"^layers\.[0-7]\.", "blocks": r"^layers\.(8|9|1[0-3])\.(\d+)", "top": r"^layers\.1[4-6]\."}


class GoogLeNet(TorchvisionBackbone):
    """Szegedy et al. 2014, arXiv:1409.4842, without the auxiliary classifiers, which only training on ImageNet needed."""

    body = (
        "conv1", "maxpool1", "conv2", "conv3", "maxpool2", "inception3a", "inception3b", "maxpool3", "inception4a", "inception4b",
        "inception4c", "inception4d", "inception4e", "maxpool4", "inception5a", "inception5b",
    )  # fmt: skip

    def __init__(self, name: str, num_classes: int = 1000, transform_input: bool = True, **settings: Any) -> None:
        """`transform_input`: the input is turned into what the official weights were trained on; torchvision does so for them only."""
        super().__init__(name, num_classes, aux_logits=False, init_weights=True, **settings)
        self.transform_input = transform_input

    @staticmethod
    def converted(state: State, _: nn.Module) -> State:
        """Without the auxiliary classifiers."""
        return {name: tensor for name, tensor in state.items() if not name.startswith(("aux1.", "aux2."))}

    def forward_features(self, inputs: Tensor) -> Tensor:
        """`[N, 3, H, W]`, normalised with ImageNet's mean and deviation, to `[N, c, h, w]`."""
        return super().forward_features(torchvision.models.GoogLeNet._transform_input(self, inputs))

    def pool(self, features: Tensor) -> Tensor:
        """With the dropout that stands before the classifier."""
        pooled = cast("nn.Module", self.avgpool)(features).flatten(1)
        return cast("Tensor", cast("nn.Module", self.dropout)(pooled))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """See `PartedBackbone`."""
        return {"stem": r"^conv1\.", "blocks": [(rf"^{name}\.", (number,)) for number, name in enumerate(self.body)]}
