"""What this project's own backbones have in common: timm's interface, to a network that is called in two steps."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from torch import Tensor, nn


class PartedBackbone(nn.Module):
    """A network whose children are the body, which makes the features, and the head.

    num_features: c of the features. head_hidden_size: d of what the classifier takes. num_classes: 0 where it has no classifier.
    """

    body: ClassVar[tuple[str, ...]] = ("features",)
    """The children that make the features, one after the other."""
    classifier_name: ClassVar[str] = "fc"
    """The last layer with weights, by its path."""
    head_parts: ClassVar[tuple[str, ...]] = ()
    """Children with hidden layers between the features and the classifier."""
    pool_size: ClassVar[tuple[int, int]] = (7, 7)
    """Height and width of the features at the input size that the network was made for."""

    num_features: int
    head_hidden_size: int
    num_classes: int

    def forward_features(self, inputs: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, c, h, w]`."""
        for name in self.body:
            inputs = self.get_submodule(name)(inputs)
        return inputs

    def pool(self, features: Tensor) -> Tensor:
        """`[N, c, h, w]` to what the classifier takes, `[N, d]`."""
        return features.mean((2, 3))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """`[N, c, h, w]` to logits `[N, C]`, or, with `pre_logits`, to what the classifier takes, `[N, d]`."""
        pooled = self.pool(features)
        return pooled if pre_logits else cast("Tensor", self.get_submodule(self.classifier_name)(pooled))

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, 3, H, W]`, normalised, to logits `[N, C]`."""
        return self.forward_head(self.forward_features(inputs))

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int) -> None:
        """A new last layer for so many classes; for 0 none, and `forward` answers what it would take."""
        self.num_classes = num_classes
        like = next(self.parameters())
        layer = self.new_classifier(num_classes).to(like.device, like.dtype) if num_classes else nn.Identity()
        self.set_submodule(self.classifier_name, layer)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """A last layer with random weights."""
        return nn.Linear(self.head_hidden_size, num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's way to count layers from the stem upward, by patterns of parameters' names."""
        return {"stem": r"^features\.0\.", "blocks": r"^features\.(\d+)"}


class HiddenLayers(PartedBackbone):
    """One whose `classifier` begins with hidden layers, as AlexNet's with fc6 and fc7. `avgpool` brings the features to their size."""

    head_parts = ("classifier",)

    def pool(self, features: Tensor) -> Tensor:
        """Through the hidden layers."""
        hidden = cast("nn.Sequential", self.classifier)[:-1]
        return cast("Tensor", hidden(cast("nn.Module", self.avgpool)(features).flatten(1)))
