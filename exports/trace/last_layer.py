"""Last linear layer of a network, from whose weight the graph takes the cotangents of the explained classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tlcli.training.models.network import ImageNetwork, Network


class LinearLastLayer:
    """Linear layer or 1x1 convolution at the end of a network: a function from the embedding z `[N, d]` to logits `[N, C]`."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        self._layer = layer

    @property
    def width(self) -> int:
        """Size d of the layer's input."""
        return self.weight.shape[1]

    @property
    def weight(self) -> Tensor:
        """Weight of the layer, `[C, d]`."""
        return self._layer.weight.flatten(1)

    def logits(self, z: Tensor) -> Tensor:
        """Compute logits `[N, C]` for embeddings `[N, d]`."""
        return functional.linear(z, self.weight, self._layer.bias)

    def rows(self, classes: Tensor) -> Tensor:
        """Return the derivatives of the classes' logits with respect to z, the rows of the weight, `[N, K, d]`, for classes `[N, K]`."""
        return functional.embedding(classes, self.weight)

    def mean_row(self, weights: Tensor) -> Tensor:
        """Return the sum of all classes' rows, each multiplied by its weight, `[N, d]`, for weights `[N, C]`."""
        return weights @ self.weight


class Logits:
    """Stand-in for the last layer of a network that computes its logits in another way: its embedding is the logits themselves."""

    def __init__(self, classes: int) -> None:
        self._classes = classes

    @property
    def width(self) -> int:
        """Number of classes C."""
        return self._classes

    def logits(self, z: Tensor) -> Tensor:
        """Return the embedding."""
        return z

    def rows(self, classes: Tensor) -> Tensor:
        """Return rows of the identity matrix, without storing that matrix."""
        return (classes[..., None] == torch.arange(self._classes)).to(torch.float32)

    def mean_row(self, weights: Tensor) -> Tensor:
        """Return the weights `[N, C]` unchanged, because they are the weighted sum of the identity matrix's rows."""
        return weights


def last_layer_of(network: ImageNetwork) -> LinearLastLayer | Logits:
    """Return the last layer of a network."""
    return LinearLastLayer(network.last_layer) if isinstance(network, Network) else Logits(network.config.num_classes)
