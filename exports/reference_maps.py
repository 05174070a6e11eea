"""Reference maps computed with PyTorch's autograd, for checking an exported graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tlcli.contract.maps.method_names import map_name
from tlcli.contract.model.description import FUSED, MapOutput
from tlcli.exports.rounding_error import Expected, expect
from tlcli.exports.trace.fuse_layers import fuse
from tlcli.exports.trace.map_methods import NEEDS_ABLATION, NEEDS_CLASS_WEIGHTS, CamInputs
from tlcli.training.models.network import ImageNetwork, Network
from tlcli.training.models.target_layers import FEATURES_CALL, TargetLayer, run_tapped

_ROWS = 64
"""Batch size for Ablation-CAM: number of modified copies of a layer's output per forward pass."""
_ZERO = 1e-3
"""Size of a map relative to the size of its terms, below which the map may consist of rounding errors."""


class Autograd:
    """Reference implementation that computes the logits and maps of a network with autograd."""

    def __init__(self, network: ImageNetwork, layers: Sequence[TargetLayer]) -> None:
        """Store the network and the layers to explain.

        Args:
            network: network in eval mode on the CPU.
            layers: layers whose gradients are recorded.
        """
        self._network = network
        self._targets = {layer.name: layer for layer in layers}
        self._layers = tuple(self._targets)

    def logits(self, images: Tensor) -> Tensor:
        """Compute the logits `[N, C]` for images, uint8 `[N, H, W, 3]`."""
        with torch.no_grad():
            logits: Tensor = self._network(self._network.normalise(images))
        return logits

    def maps(self, images: Tensor, classes: Tensor, outputs: Sequence[MapOutput]) -> dict[str, Expected]:
        """Compute maps with their rounding bounds, by output name.

        Args:
            images: uint8 `[N, H, W, 3]`.
            classes: classes to explain, int64 `[N, K]`.
            outputs: maps that the graph computes; a fused map must come after the maps that it combines.
        """
        logits, activations, gradients = self._forward_and_backward(images, classes)
        scores = logits.gather(1, classes)
        maps: dict[str, Expected] = {}
        for output in outputs:
            if FUSED in output.layer:
                maps[output.name] = _fused([maps[map_name(output.method, layer)] for layer in self._layers])
                continue
            layer = output.layer
            inputs = CamInputs(
                activations=activations[layer],
                gradients=gradients[layer],
                mean_gradients=gradients[layer].mean((-2, -1)),
                class_weights=self._class_weights(classes) if output.method in NEEDS_CLASS_WEIGHTS else None,
                scores=scores,
                ablated=self._ablated(images, classes, layer, activations[layer]) if output.method in NEEDS_ABLATION else None,
            )
            maps[output.name] = expect(output.method, inputs)
        return maps

    def _forward_and_backward(self, images: Tensor, classes: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Run the network forward and backward.

        Returns:
            The logits, each layer's activations `[N, c, h, w]`, and for each layer the gradients of the explained classes' logits with
            respect to these activations, `[N, K, c, h, w]`.
        """
        outputs: dict[str, Tensor] = {}
        activations: dict[str, Tensor] = {}

        def record(name: str, output: Tensor) -> Tensor:
            outputs[name] = output if output.requires_grad else output.detach().requires_grad_()
            activations[name] = outputs[name].detach().clone()
            return outputs[name] * 1  # later layers may work in place

        with torch.enable_grad():
            logits = run_tapped(self._network, self._network.normalise(images), [*self._targets.values()], record)
            scores = logits.gather(1, classes).sum(0)
            layers = [outputs[name] for name in self._layers]
            by_class = [torch.autograd.grad(score, layers, retain_graph=True) for score in scores]
        by_layer = zip(self._layers, *by_class, strict=True)
        gradients = {name: torch.stack(rows, 1) for name, *rows in by_layer}
        return logits.detach(), activations, gradients

    def _class_weights(self, classes: Tensor) -> Tensor:
        assert isinstance(self._network, Network)
        return self._network.last_layer.weight.flatten(1)[classes]

    def _ablated(self, images: Tensor, classes: Tensor, layer: str, activations: Tensor) -> Tensor:
        """Compute the classes' logits with each channel of a layer set to zero in turn, `[N, K, c]`."""
        channels = activations.shape[1]
        by_image = []
        with torch.no_grad():
            inputs = self._network.normalise(images)
            for image in range(len(images)):
                rows = []
                for start in range(0, channels, _ROWS):
                    due = torch.arange(start, min(start + _ROWS, channels))
                    changed = activations[image].repeat(len(due), 1, 1, 1)
                    changed[torch.arange(len(due)), due] = 0
                    rows.append(self._logits_of_copies(inputs[image], layer, changed)[:, classes[image]])
                by_image.append(torch.cat(rows).t())
        return torch.stack(by_image)

    def _logits_of_copies(self, inputs: Tensor, layer: str, changed: Tensor) -> Tensor:
        """Compute the logits `[R, C]` of one input for R modified copies of a layer's output."""
        if layer == FEATURES_CALL and self._targets[layer].layout.kind != "tokens":
            assert isinstance(self._network, Network)
            return self._network.classify(self._network.embed(self._targets[layer].layout.from_map(changed)))
        of_one_input = self._replaced(inputs[None], layer, changed.clone())
        if of_one_input is not None and len(of_one_input) == len(changed):
            return of_one_input
        of_repeated_input = self._replaced(inputs.expand(len(changed), -1, -1, -1), layer, changed)
        assert of_repeated_input is not None
        return of_repeated_input

    def _replaced(self, inputs: Tensor, layer: str, changed: Tensor) -> Tensor | None:
        """Compute the logits with a layer's output replaced.

        Returns None if a single input cannot be combined with several copies, for example because a skip connection bypasses the layer.
        """
        target = self._targets[layer]
        if target.layout.prefix and len(inputs) < len(changed):  # prefix tokens cannot be combined with more copies than there are inputs
            return None
        try:
            return run_tapped(self._network, inputs, [target], lambda _, __: changed)
        except RuntimeError:
            if len(inputs) == len(changed):
                raise
            return None


def _fused(maps: Sequence[Expected]) -> Expected:
    """Fuse the maps of several layers, each scaled to [0, 1] by its own range.

    Scaling amplifies the rounding errors of a map that is zero up to rounding, or has values at a threshold, to arbitrary values. If one of
    the maps is like that, the bounds are 0 and 1.
    """
    values = fuse([expected.values for expected in maps])
    undecided = torch.stack([_is_zero(expected) | _has_threshold(expected) for expected in maps]).any(0)[..., None, None]
    lowest, highest = torch.where(undecided, 0.0, values), torch.where(undecided, 1.0, values)
    return Expected(values, lowest, highest, torch.ones_like(values[..., 0, 0]))


def _is_zero(expected: Expected) -> Tensor:
    """Return a mask `[N, K]` of the maps that are zero up to rounding.

    Maps that are exactly 0 are excluded: their sums are negative before rectification, so rounding does not affect them.
    """
    largest = expected.values.amax((-2, -1))
    return (largest > 0) & (largest <= _ZERO * expected.terms)


def _has_threshold(expected: Expected) -> Tensor:
    """Return a mask `[N, K]` of the maps that have positions at a threshold."""
    return (expected.highest - expected.lowest).amax((-2, -1)) > 0
