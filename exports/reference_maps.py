"""Reference maps computed with PyTorch's autograd, for checking an exported graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tlcli.contract.maps.method_names import OF_ATTENTION, map_name
from tlcli.contract.model.description import FUSED, MapOutput
from tlcli.exports.rounding_error import Expected, expect
from tlcli.exports.trace.attention import find_attention
from tlcli.exports.trace.fuse_layers import fuse
from tlcli.exports.trace.map_methods import (
    NEEDS_ABLATION,
    NEEDS_CLASS_WEIGHTS,
    NEEDS_DIFFERENCE,
    NEEDS_MASKING,
    AttentionInputs,
    CamInputs,
    position_masks,
)
from tlcli.exports.trace.similar_classes import difference, similar_classes
from tlcli.training.models.network import ImageNetwork, Network
from tlcli.training.models.target_layers import FEATURES_CALL, TargetLayer, run_tapped

_ROWS = 64
"""Batch size for Ablation-CAM and Recipro-CAM: number of modified copies of a layer's output per forward pass."""
_TIED = 1e-5
"""Difference between two distances of logits, relative to the largest logit, below which either class may be the more similar one."""
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
        logits, activations, gradients = self._forward_and_backward(images, lambda logits: logits.gather(1, classes))
        scores = logits.gather(1, classes)
        attention = self._attention(images, classes) if any(output.method in OF_ATTENTION for output in outputs) else None
        differences: list[dict[str, Tensor]] = []  # with the similar classes of rounded logits, as far as rounding leaves them open
        if any(output.method in NEEDS_DIFFERENCE for output in outputs):
            choices = _possible_similar_classes(logits, classes)
            differences = [self._forward_and_backward(images, _difference_of(classes, similar))[2] for similar in choices]
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
                masked=self._masked(images, classes, layer, activations[layer]) if output.method in NEEDS_MASKING else None,
                attention=attention,
            )
            if output.method in NEEDS_DIFFERENCE:
                maps[output.name] = _any_of(
                    [expect(output.method, replace(inputs, difference=_with_gradients(inputs, each[layer]))) for each in differences]
                )
            else:
                maps[output.name] = expect(output.method, inputs)
        return maps

    def _forward_and_backward(
        self, images: Tensor, scores_of: Callable[[Tensor], Tensor], layers: Sequence[TargetLayer] | None = None
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Run the network forward and backward.

        Args:
            images: uint8 `[N, H, W, 3]`.
            scores_of: function from the logits to the explained scores `[N, K]`.
            layers: layers whose gradients are computed; None for the explained layers.

        Returns:
            The logits, each layer's activations `[N, c, h, w]`, and for each layer the gradients of the explained scores with respect to
            these activations, `[N, K, c, h, w]`.
        """
        targets = [*self._targets.values()] if layers is None else layers
        outputs: dict[str, Tensor] = {}
        activations: dict[str, Tensor] = {}

        def record(name: str, output: Tensor) -> Tensor:
            outputs[name] = output if output.requires_grad else output.detach().requires_grad_()
            activations[name] = outputs[name].detach().clone()
            return outputs[name] * 1  # later layers may work in place

        with torch.enable_grad():
            logits = run_tapped(self._network, self._network.normalise(images), targets, record)
            scores = scores_of(logits).sum(0)
            names = [target.name for target in targets]
            by_class = [torch.autograd.grad(score, [outputs[name] for name in names], retain_graph=True) for score in scores]
        by_layer = zip(names, *by_class, strict=True)
        gradients = {name: torch.stack(rows, 1) for name, *rows in by_layer}
        return logits.detach(), activations, gradients

    def _attention(self, images: Tensor, classes: Tensor) -> AttentionInputs:
        """Compute the attention weights of all blocks and their gradients."""
        attention = find_attention(self._network, [*self._targets.values()])
        assert attention is not None
        _, weights, gradients = self._forward_and_backward(images, lambda logits: logits.gather(1, classes), attention.layers)
        return AttentionInputs(
            weights=tuple(weights.values()),
            gradients=tuple(gradients.values()),
            rows=attention.rows,
            prefix=attention.layout.prefix,
            height=attention.layout.height,
            width=attention.layout.width,
        )

    def _class_weights(self, classes: Tensor) -> Tensor:
        assert isinstance(self._network, Network)
        return self._network.last_layer.weight.flatten(1)[classes]

    def _ablated(self, images: Tensor, classes: Tensor, layer: str, activations: Tensor) -> Tensor:
        """Compute the classes' logits with each channel of a layer set to zero in turn, `[N, K, c]`."""

        def without(of_image: Tensor, due: Tensor) -> Tensor:
            changed = of_image.repeat(len(due), 1, 1, 1)
            changed[torch.arange(len(due)), due] = 0
            return changed

        return self._scores_of_copies(images, classes, layer, activations, activations.shape[1], without)

    def _masked(self, images: Tensor, classes: Tensor, layer: str, activations: Tensor) -> Tensor:
        """Compute the classes' logits with a layer masked around each position in turn, `[N, K, h, w]`."""
        height, width = activations.shape[-2:]

        def masked(of_image: Tensor, due: Tensor) -> Tensor:
            return of_image * position_masks(due, height, width)[:, None]

        scores = self._scores_of_copies(images, classes, layer, activations, height * width, masked)
        return scores.reshape(*scores.shape[:2], height, width)

    def _scores_of_copies(
        self,
        images: Tensor,
        classes: Tensor,
        layer: str,
        activations: Tensor,
        count: int,
        modify: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Compute the classes' logits for `count` modified copies of a layer's output, `[N, K, count]`.

        Args:
            images, classes, layer, activations: as in `_ablated`.
            count: number of copies per image.
            modify: function from one image's activations `[c, h, w]` and the indices of R copies to the copies `[R, c, h, w]`.
        """
        by_image = []
        with torch.no_grad():
            inputs = self._network.normalise(images)
            for image in range(len(images)):
                rows = []
                for start in range(0, count, _ROWS):
                    changed = modify(activations[image], torch.arange(start, min(start + _ROWS, count)))
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


def _possible_similar_classes(logits: Tensor, classes: Tensor) -> list[Tensor]:
    """Return the similar classes of each class, `[N, K, S]`, and, where rounding leaves the last one open, the other possibility."""
    similar, other = similar_classes(logits, classes), similar_classes(logits, classes, skip_last=True)
    own = logits.gather(1, classes)[..., None]
    last, next_one = ((logits.gather(1, choice.flatten(1)).view_as(choice) - own).abs()[..., -1:] for choice in (similar, other))
    open_choice = (next_one - last) <= _TIED * logits.abs().max()
    return [similar, torch.where(open_choice, other, similar)] if bool((open_choice & (similar != other)).any()) else [similar]


def _difference_of(classes: Tensor, similar: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function from the logits to Finer-CAM's scores, `[N, K]`."""
    return lambda logits: difference(logits.gather(1, classes), logits.gather(1, similar.flatten(1)).view_as(similar))


def _with_gradients(inputs: CamInputs, gradients: Tensor) -> CamInputs:
    return replace(inputs, gradients=gradients, mean_gradients=gradients.mean((-2, -1)))


def _any_of(maps: Sequence[Expected]) -> Expected:
    """Combine alternatives of which any may be computed."""
    lowest, highest = torch.stack([expected.values for expected in maps]).aminmax(dim=0)
    return Expected(maps[0].values, lowest, highest, torch.stack([expected.terms for expected in maps]).amax(0))


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
