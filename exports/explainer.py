"""The module that becomes the graph: pictures and classes in, scores and maps out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from contract.description import CLASSES, FEATURES, LOGITS, SCORES
from contract.errors import ExportError, first_line
from exports.backward import TracedHead
from exports.methods import IN_GRAPH, NEEDS_CLASS_WEIGHTS, Evidence
from training.network import Network

GRADIENTS = "gradients"
"""dy/dA, which several maps share: an output of the module, but not of the finished graph (see `exports.gating`)."""


class Explainer(nn.Module):
    """`forward(images, targets)` answers the graph's outputs, in the order of `outputs`."""

    def __init__(self, network: Network, methods: Sequence[str] | None = None) -> None:
        """Trace the head's gradient.

        Args:
            network: in eval mode, on the CPU, parameters not requiring gradients.
            methods: map methods, by name; None takes every one that the head allows.

        Raises:
            ExportError: a method that this head does not allow, or a head whose gradient cannot be traced.
        """
        super().__init__()
        self.network = network
        size = network.config.preprocessing
        with torch.no_grad():
            activations = network.features(torch.zeros(1, 3, size.height, size.width))
        self.feature_shape: tuple[int, int, int] = tuple(activations.shape[1:])  # type: ignore[assignment]
        self._has_class_weights = class_weights(network) is not None
        self.methods = tuple(methods) if methods is not None else tuple(self._allowed())
        for method in self.methods:
            if method not in IN_GRAPH:
                raise ExportError(f"unknown map method {method!r}: expected one of {', '.join(IN_GRAPH)}")
            if method not in self._allowed():
                raise ExportError(
                    f"{method} needs a head that is one linear layer on the spatial mean; the head {network.config.head!r} of"
                    f" {network.config.backbone} is not: it allows {', '.join(self._allowed())}"
                )
        try:
            self.head = TracedHead(lambda a: network.classify(network.embed(a)), activations[0])
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise ExportError(f"the gradient of {network.config.backbone}'s head cannot be traced: {first_line(error)}") from error

    def _allowed(self) -> list[str]:
        return [name for name in IN_GRAPH if self._has_class_weights or name not in NEEDS_CLASS_WEIGHTS]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what `forward` returns."""
        return (SCORES, LOGITS, CLASSES, FEATURES, *self.methods, GRADIENTS)

    def forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """uint8 `[N, H, W, 3]` and int64 `[N or 1, K]` to the tensors that `outputs` names."""
        activations = self.network.features(self.network.normalise(images))
        logits, remembered = self.head(activations)
        classes = _resolve(targets, logits)
        one_hot = torch.nn.functional.one_hot(classes, logits.shape[1]).to(logits.dtype)
        weight = cast("Tensor", self.network.classifier.weight).flatten(1) if self._has_class_weights else None
        evidence = Evidence(
            activations=activations,
            gradients=self.head.pull_back(one_hot, remembered),
            class_weights=weight[classes] if weight is not None else None,
        )
        maps = [IN_GRAPH[method](evidence) for method in self.methods]
        return (logits.softmax(1), logits, classes, activations, *maps, evidence.gradients)


def class_weights(network: Network) -> Tensor | None:
    """The last layer's weight `[C, c]`, if the head is one linear layer on the spatial mean of the features, else None.

    Found by trying the head out, so that it holds for any backbone's own head.
    """
    classifier = network.classifier
    if not isinstance(classifier, (nn.Linear, nn.Conv2d)):
        return None
    weight = classifier.weight.flatten(1)
    size = network.config.preprocessing
    with torch.no_grad():
        channels, height, width = network.features(torch.zeros(1, 3, size.height, size.width)).shape[1:]
        if weight.shape[1] != channels:
            return None
        activations = torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(0))
        expected = activations.mean((-2, -1)) @ weight.T
        if classifier.bias is not None:
            expected = expected + classifier.bias
        same = torch.allclose(network.classify(network.embed(activations)), expected, rtol=1e-4, atol=1e-5)
    return weight if same else None


def _resolve(targets: Tensor, logits: Tensor) -> Tensor:
    """Class ids `[N, K]` for targets `[N or 1, K]`, of which -r means the r-th ranked."""
    count = logits.shape[1]
    row = torch.arange(logits.shape[0]).clamp(max=targets.shape[0] - 1)  # one row serves all pictures
    wanted = targets[row]
    ranking = logits.topk(count, dim=1).indices
    ranked = ranking.gather(1, (-1 - wanted).clamp(0, count - 1))
    return torch.where(wanted < 0, ranked, wanted.clamp(0, count - 1))
