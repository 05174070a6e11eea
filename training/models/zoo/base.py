"""Base classes of this project's own backbones, with timm's interface."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from torch import Tensor, nn


class ZooBackbone(nn.Module):
    """Network whose children are the body, which computes the features, and the head.

    num_features: number of channels c of the features. head_hidden_size: size d of the classifier's input.
    num_classes: number of classes; 0 without a classifier.
    """

    body: ClassVar[tuple[str, ...]] = ("features",)
    """Names of the children that compute the features, in order."""
    classifier_name: ClassVar[str] = "fc"
    """Path of the last layer with weights."""
    head_layers: ClassVar[tuple[str, ...]] = ()
    """Names of the children with hidden layers between the features and the classifier."""
    pool_size: ClassVar[tuple[int, int]] = (7, 7)
    """Height and width of the features at the network's default input size."""

    num_features: int
    head_hidden_size: int
    num_classes: int

    def forward_features(self, inputs: Tensor) -> Tensor:
        """Compute features `[N, c, h, w]` of normalized inputs `[N, 3, H, W]`."""
        for name in self.body:
            inputs = self.get_submodule(name)(inputs)
        return inputs

    def pool(self, features: Tensor) -> Tensor:
        """Compute the classifier's input `[N, d]` from features `[N, c, h, w]`: the spatial mean."""
        return features.mean((2, 3))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Compute logits `[N, C]` of features `[N, c, h, w]`, or, with `pre_logits`, the classifier's input `[N, d]`."""
        pooled = self.pool(features)
        return pooled if pre_logits else cast("Tensor", self.get_submodule(self.classifier_name)(pooled))

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute logits `[N, C]` of normalized inputs `[N, 3, H, W]`."""
        return self.forward_head(self.forward_features(inputs))

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer by a new one for `num_classes`; for 0, remove it, so that `forward` returns the classifier's input."""
        self.num_classes = num_classes
        like = next(self.parameters())
        layer = self.new_classifier(num_classes).to(like.device, like.dtype) if num_classes else nn.Identity()
        self.set_submodule(self.classifier_name, layer)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a last layer with random weights."""
        return nn.Linear(self.head_hidden_size, num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns of parameter names, by which timm numbers the layers from the stem upward."""
        return {"stem": r"^features\.0\.", "blocks": r"^features\.(\d+)"}


class HiddenLayers(ZooBackbone):
    """Backbone whose `classifier` starts with hidden layers, such as AlexNet's fc6 and fc7, after `avgpool` to a fixed size."""

    head_layers = ("classifier",)

    def pool(self, features: Tensor) -> Tensor:
        """Compute the classifier's input `[N, d]` by the hidden layers."""
        hidden = cast("nn.Sequential", self.classifier)[:-1]
        return cast("Tensor", hidden(cast("nn.Module", self.avgpool)(features).flatten(1)))
