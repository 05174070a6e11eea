"""PyTorch's own answer: a network's maps by autograd, which an exported graph is checked against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from tlcli.contract.maps.method_names import map_name
from tlcli.contract.model.description import FUSED, MapOutput
from tlcli.exports.rounding_error import Expected, expect
from tlcli.exports.trace.fuse_layers import fuse
from tlcli.exports.trace.map_methods import NEEDS_ABLATION, NEEDS_CLASS_WEIGHTS, CamInputs
from tlcli.exports.trace.target_layers import FEATURES_CALL, tapped
from tlcli.training.models.network import ImageNetwork, Network

_ROWS = 64
"""So many changed copies of a layer's output are run at a time."""
_ZERO = 1e-3
"""Relative to the size of its terms: a map below it may be rounding alone."""


class Autograd:
    """A network, in eval mode and on the CPU, with layers that are watched."""

    def __init__(self, network: ImageNetwork, layers: Sequence[str]) -> None:
        """`network`: a `Network` if there are layers."""
        self._network = cast("Network", network)
        self._layers = tuple(layers)

    def logits(self, images: Tensor) -> Tensor:
        """uint8 `[N, H, W, 3]` to `[N, C]`."""
        with torch.no_grad():
            logits: Tensor = self._network(self._network.normalise(images))
        return logits

    def maps(self, images: Tensor, classes: Tensor, outputs: Sequence[MapOutput]) -> dict[str, Expected]:
        """The maps of those that the graph computes, by name, with what rounding leaves open of them.

        Args:
            images: uint8 `[N, H, W, 3]`.
            classes: int64 `[N, K]`.
            outputs: those that are wanted.
        """
        logits, activations, gradients = self._observe(images, classes)
        scores = logits.gather(1, classes)
        found: dict[str, Expected] = {}
        for output in outputs:
            if FUSED in output.layer:
                found[output.name] = _fused([found[map_name(output.method, layer)] for layer in self._layers])
                continue
            layer = output.layer
            evidence = CamInputs(
                activations=activations[layer],
                gradients=gradients[layer],
                mean_gradients=gradients[layer].mean((-2, -1)),
                class_weights=self._network.last_layer.weight.flatten(1)[classes] if output.method in NEEDS_CLASS_WEIGHTS else None,
                scores=scores,
                ablated=self._ablated(images, classes, layer, activations[layer]) if output.method in NEEDS_ABLATION else None,
            )
            found[output.name] = expect(output.method, evidence)
        return found

    def _observe(self, images: Tensor, classes: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        watched: dict[str, Tensor] = {}
        seen: dict[str, Tensor] = {}

        def watch(name: str, output: Tensor) -> Tensor:
            watched[name] = output if output.requires_grad else output.detach().requires_grad_()
            seen[name] = watched[name].detach().clone()
            return watched[name] * 1  # what follows may work in place

        with torch.enable_grad():
            logits = self._run(self._network.normalise(images), watch)
            scores = logits.gather(1, classes).sum(0)
            leaves = [watched[name] for name in self._layers]
            rows = [torch.autograd.grad(score, leaves, retain_graph=True) for score in scores]
        gradients = {name: torch.stack([row[number] for row in rows], 1) for number, name in enumerate(self._layers)}
        return logits.detach(), seen, gradients

    def _run(self, inputs: Tensor, tap: object) -> Tensor:
        with tapped(self._network, self._layers, tap):  # type: ignore[arg-type]
            features = self._network.features(inputs)
            if FEATURES_CALL in self._layers:
                features = tap(FEATURES_CALL, features)  # type: ignore[operator]
            return self._network.classify(self._network.embed(features))

    def _ablated(self, images: Tensor, classes: Tensor, layer: str, activations: Tensor) -> Tensor:
        """The classes' logits without each channel of a layer: the network is run again for each, `[N, K, c]`."""
        channels = activations.shape[1]
        found = []
        with torch.no_grad():
            inputs = self._network.normalise(images)
            for image in range(len(images)):
                rows = []
                for start in range(0, channels, _ROWS):
                    due = torch.arange(start, min(start + _ROWS, channels))
                    changed = activations[image].repeat(len(due), 1, 1, 1)
                    changed[torch.arange(len(due)), due] = 0
                    rows.append(self._with(inputs[image], layer, changed)[:, classes[image]])
                found.append(torch.cat(rows).t())
        return torch.stack(found)

    def _with(self, inputs: Tensor, layer: str, changed: Tensor) -> Tensor:
        if layer == FEATURES_CALL:
            return self._network.classify(self._network.embed(changed))
        once = self._replaced(inputs[None], layer, changed.clone())
        if once is not None and len(once) == len(changed):
            return once
        everywhere = self._replaced(inputs.expand(len(changed), -1, -1, -1), layer, changed)
        assert everywhere is not None
        return everywhere

    def _replaced(self, inputs: Tensor, layer: str, changed: Tensor) -> Tensor | None:
        """None where a single input is given, and what is beside the layer cannot meet the many copies behind it."""
        with tapped(self._network, [layer], lambda _, __: changed):
            try:
                return self._network(inputs)  # type: ignore[no-any-return]
            except RuntimeError:
                if len(inputs) == len(changed):
                    raise
                return None


def _fused(maps: Sequence[Expected]) -> Expected:
    """Fuse maps, each scaled to its own range. A map that is zero except for rounding could be anything then, and decides nothing."""
    values = fuse([one.values for one in maps])
    largest = [one.values.amax((-2, -1)) for one in maps]  # 0 where the sum is negative everywhere: that is decided
    is_zero = torch.stack([(most > 0) & (most <= _ZERO * one.terms) for most, one in zip(largest, maps, strict=True)]).any(0)[
        ..., None, None
    ]
    undecided = is_zero | torch.stack([(one.highest - one.lowest).amax((-2, -1)) > 0 for one in maps]).any(0)[..., None, None]
    lowest, highest = torch.where(undecided, 0.0, values), torch.where(undecided, 1.0, values)
    return Expected(values, lowest, highest, torch.ones_like(values[..., 0, 0]))
