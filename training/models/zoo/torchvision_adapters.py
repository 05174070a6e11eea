"""Adapters that give torchvision networks timm's interface. Modules keep their torchvision names."""

from __future__ import annotations

from typing import Any, cast

import torchvision
from torch import Tensor, nn

from tlcli.training.models.zoo.base import HiddenLayers, ZooBackbone

State = dict[str, Tensor]


class TorchvisionBackbone(ZooBackbone):
    """Backbone built from the modules of a torchvision network. Its `state_dict` has the same names as torchvision's."""

    def __init__(self, name: str, num_classes: int = 1000, **settings: Any) -> None:
        """Build the torchvision network with random weights and take over its modules.

        Args:
            name: torchvision name of the network.
            num_classes: number of classes; 0 for no classifier.
            settings: arguments for the torchvision constructor.
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
        """Return the tensors of a checkpoint without those needed only for training on ImageNet."""
        return state


class AlexNet(HiddenLayers, TorchvisionBackbone):
    """AlexNet of Krizhevsky 2014, arXiv:1404.5997. `classifier` contains fc6, fc7 and the last layer."""

    classifier_name = "classifier.6"
    pool_size = (6, 6)

    def __init__(self, name: str, num_classes: int = 1000, **settings: Any) -> None:
        super().__init__(name, num_classes, **settings)
        self.num_features = cast("nn.Conv2d", self.get_submodule("features.10")).out_channels


class SqueezeNet(TorchvisionBackbone):
    """SqueezeNet of Iandola et al. 2016, arXiv:1602.07360. The classifier is a convolution followed by ReLU and pooling.

    The input of the classifier is therefore not a vector, and no linear layer on pooled features is equivalent to it.
    """

    classifier_name = "classifier.1"
    pool_size = (13, 13)

    def get_classifier(self) -> nn.Module:
        """Return the convolution together with the ReLU and pooling after it, which are needed to compute logits."""
        return cast("nn.Module", self.classifier)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Create a convolution, initialized as in torchvision."""
        layer = nn.Conv2d(self.num_features, num_classes, kernel_size=1)
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(cast("Tensor", layer.bias))
        return layer

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Compute logits `[N, C]` for features `[N, c, h, w]`. If `pre_logits`, return pooled features `[N, c]` instead."""
        if pre_logits:
            return self.pool(features)
        return cast("Tensor", cast("nn.Module", self.classifier)(features).flatten(1))


class ShuffleNetV2(TorchvisionBackbone):
    """ShuffleNet V2 of Ma et al. 2018, arXiv:1807.11164."""

    body = ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5")

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the parameter-name patterns of the layer groups; see `ZooBackbone.group_matcher`."""
        return {"stem": r"^conv1\.", "blocks": r"^stage(\d+)\.(\d+)", "top": r"^conv5\."}


class MNASNet(TorchvisionBackbone):
    """MNASNet-B1 of Tan et al. 2018, arXiv:1807.11626.

    The first eight children of `layers` form the stem; the last three widen the features to the size of the classifier's input.
    """

    body = ("layers",)
    classifier_name = "classifier.1"

    def pool(self, features: Tensor) -> Tensor:
        """Compute the classifier's input `[N, d]`, the spatial mean with dropout."""
        return cast("Tensor", cast("nn.Sequential", self.classifier)[0](super().pool(features)))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the parameter-name patterns of the layer groups; see `ZooBackbone.group_matcher`."""
        return {"stem": r"^layers\.[0-7]\.", "blocks": r"^layers\.(8|9|1[0-3])\.(\d+)", "top": r"^layers\.1[4-6]\."}


class GoogLeNet(TorchvisionBackbone):
    """GoogLeNet of Szegedy et al. 2014, arXiv:1409.4842, without the auxiliary classifiers, which are used only to train on ImageNet."""

    body = (
        "conv1", "maxpool1", "conv2", "conv3", "maxpool2", "inception3a", "inception3b", "maxpool3", "inception4a", "inception4b",
        "inception4c", "inception4d", "inception4e", "maxpool4", "inception5a", "inception5b",
    )  # fmt: skip

    def __init__(self, name: str, num_classes: int = 1000, transform_input: bool = True, **settings: Any) -> None:
        """Build the torchvision network with random weights.

        Args:
            name: torchvision name of the network.
            num_classes: number of classes; 0 for no classifier.
            transform_input: True to convert the input to the normalization of the official weights. torchvision does this only for those
                weights.
            settings: arguments for the torchvision constructor.
        """
        super().__init__(name, num_classes, aux_logits=False, init_weights=True, **settings)
        self.transform_input = transform_input

    @staticmethod
    def converted(state: State, _: nn.Module) -> State:
        """Return the tensors of a checkpoint without the auxiliary classifiers."""
        return {name: tensor for name, tensor in state.items() if not name.startswith(("aux1.", "aux2."))}

    def forward_features(self, inputs: Tensor) -> Tensor:
        """Compute features `[N, c, h, w]` for inputs `[N, 3, H, W]` normalized with the mean and standard deviation of ImageNet."""
        return super().forward_features(torchvision.models.GoogLeNet._transform_input(self, inputs))

    def pool(self, features: Tensor) -> Tensor:
        """Compute the classifier's input `[N, d]`, the spatial mean with dropout."""
        pooled = cast("nn.Module", self.avgpool)(features).flatten(1)
        return cast("Tensor", cast("nn.Module", self.dropout)(pooled))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the parameter-name patterns of the layer groups; see `ZooBackbone.group_matcher`."""
        return {"stem": r"^conv1\.", "blocks": [(rf"^{name}\.", (number,)) for number, name in enumerate(self.body)]}
