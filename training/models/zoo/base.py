"""Base classes that implement timm's interface for this project's own backbones."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from torch import Tensor, nn


class ZooBackbone(nn.Module):
    """Base class of backbones, whose child modules form a body that computes the features, and a head.

    num_features: number of channels c of the features. head_hidden_size: size d of the classifier's input.
    num_classes: number of classes; 0 if there is no classifier.
    """

    body: ClassVar[tuple[str, ...]] = ("features",)
    """Names of the child modules that compute the features, in order."""
    classifier_name: ClassVar[str] = "fc"
    """Path of the last layer with weights."""
    head_layers: ClassVar[tuple[str, ...]] = ()
    """Names of the child modules with hidden layers between the features and the classifier."""
    pool_size: ClassVar[tuple[int, int]] = (7, 7)
    """Height and width of the features at the network's default input size."""

    num_features: int
    head_hidden_size: int
    num_classes: int

    def forward_features(self, inputs: Tensor) -> Tensor:
        """Compute features `[N, c, h, w]` for normalized inputs `[N, 3, H, W]`."""
        for name in self.body:
            inputs = self.get_submodule(name)(inputs)
        return inputs

    def pool(self, features: Tensor) -> Tensor:
        """Compute the classifier's input `[N, d]` by averaging features `[N, c, h, w]` over their positions."""
        return features.mean((2, 3))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Compute logits `[N, C]` for features `[N, c, h, w]`. If `pre_logits`, return the classifier's input `[N, d]` instead."""
        pooled = self.pool(features)
        return pooled if pre_logits else cast("Tensor", self.get_submodule(self.classifier_name)(pooled))

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute logits `[N, C]` for normalized inputs `[N, 3, H, W]`."""
        return self.forward_head(self.forward_features(inputs))

    def get_classifier(self) -> nn.Module:
        """Return the last layer of the head."""
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer with a new one for `num_classes` classes.

        With 0, the last layer is removed and `forward` returns the classifier's input.
        """
        self.num_classes = num_classes
        like = next(self.parameters())
        layer = self.new_classifier(num_classes).to(like.device, like.dtype) if num_classes else nn.Identity()
        self.set_submodule(self.classifier_name, layer)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Create a last layer with random weights."""
        return nn.Linear(self.head_hidden_size, num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the parameter-name patterns that timm uses to group layers by depth, starting at the stem."""
        return {"stem": r"^features\.0\.", "blocks": r"^features\.(\d+)"}


class HiddenLayers(ZooBackbone):
    """Backbone that applies `avgpool` to a fixed size, followed by a `classifier` that starts with hidden layers.

    An example is AlexNet with its layers fc6 and fc7.
    """

    head_layers = ("classifier",)

    def pool(self, features: Tensor) -> Tensor:
        """Compute the classifier's input `[N, d]` by pooling the features and applying the hidden layers."""
        hidden = cast("nn.Sequential", self.classifier)[:-1]
        return cast("Tensor", hidden(cast("nn.Module", self.avgpool)(features).flatten(1)))
