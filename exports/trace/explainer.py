"""The module that becomes the graph: images and classes in, scores and maps out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from tlcli.contract.errors import ExportError, first_line
from tlcli.contract.maps.method_names import METHODS, map_name
from tlcli.contract.model.description import CLASSES, FEATURES, FUSED, GRADIENTS, LOGITS, SCORES, Layer, MapOutput
from tlcli.exports.rewrite.ablation_loop import step_output
from tlcli.exports.rewrite.target_choice import OF_LOGITS, OF_PROBABILITIES
from tlcli.exports.trace.fuse_layers import fuse
from tlcli.exports.trace.map_methods import FORMULAS, NEEDS_ABLATION, NEEDS_CLASS_WEIGHTS, Evidence
from tlcli.exports.trace.target_layers import FEATURES_CALL, Spatial, Tap, resolve_layers, tapped
from tlcli.exports.trace.vjp import Tail
from tlcli.training.models.network import ImageNetwork, Network


class Explainer(nn.Module):
    """`forward` answers the graph's outputs, and what is still to be closed up in it, in the order of `outputs`."""

    def __init__(
        self, network: ImageNetwork, methods: Sequence[str] | None = None, layers: Sequence[str] | None = None, dynamic_size: bool = False
    ) -> None:
        """Trace what follows the layers, and its gradient.

        Args:
            network: in eval mode, on the CPU, parameters not requiring gradients.
            methods: map methods, by name, in the graph or beside it; None takes every one that the head allows; none, no layer.
            layers: of the backbone, by name; None takes the last one with a spatial extent.
            dynamic_size: let images be of any height and width.

        Raises:
            ExportError: a layer that is not there, a method that this head does not allow, an operator whose gradient cannot
                be traced, or maps of a network that is not cut into features and a head.
        """
        super().__init__()
        self.network = cast("Network", network)
        self._is_cut = isinstance(network, Network)
        self.dynamic_size = dynamic_size
        with_maps = methods is None or len(methods) > 0
        if with_maps and not self._is_cut:
            raise ExportError(f"{network.config.backbone} is not cut into features and a head, so it has no maps: add --cam none")
        chosen = resolve_layers(self.network, layers) if with_maps else []
        several = len(chosen) > 1
        self.layers = tuple(
            Layer(
                name=one.name,
                features=map_name(FEATURES, one.name if several else None),
                gradients=map_name(GRADIENTS, one.name if several else None),
                channels=one.channels,
                height=one.height,
                width=one.width,
            )
            for one in chosen
        )
        self._pooled_linear = len(chosen) == 1 and is_pooled_linear(self.network, chosen[0])
        self.methods = self._require(methods)
        self.maps = self._maps()
        self.looped = not NEEDS_ABLATION.isdisjoint(self.methods)
        self._rest_is_head = len(chosen) == 1 and chosen[0].is_features
        self.tail = self._trace() if chosen else None

    def _require(self, methods: Sequence[str] | None) -> tuple[str, ...]:
        allowed = [name for name in METHODS if self._pooled_linear or name not in NEEDS_CLASS_WEIGHTS]
        for method in methods or ():
            if method not in METHODS:
                raise ExportError(f"unknown map method {method!r}: expected some of {', '.join(METHODS)}")
            if method not in allowed:
                where = " and ".join(layer.name for layer in self.layers)
                raise ExportError(
                    f"{method} needs a head that is one linear layer on the layer's spatial mean; the head {self.network.config.head!r} of"
                    f" {self.network.config.backbone} is not, at {where}: it allows {', '.join(allowed)}"
                )
        return tuple(name for name in allowed if methods is None or name in methods)

    def _maps(self) -> tuple[MapOutput, ...]:
        """A map a method; for several layers one of each, and the one that is fused of them."""
        if not self.layers:
            return ()
        several = len(self.layers) > 1
        fused = FUSED.join(layer.name for layer in self.layers)
        height, width = max(layer.height for layer in self.layers), max(layer.width for layer in self.layers)
        found = []
        for method in self.methods:
            for layer in self.layers:
                name = map_name(method, layer.name if several else None)
                found.append(MapOutput(name=name, method=method, layer=layer.name, height=layer.height, width=layer.width))
            if several:
                found.append(MapOutput(name=method, method=method, layer=fused, height=height, width=width))
        return tuple(found)

    def _trace(self) -> Tail:
        size = self.network.config.preprocessing
        example = torch.zeros(1, 3, size.height, size.width)
        names = [layer.name for layer in self.layers]
        try:
            with sdpa_kernel(SDPBackend.MATH):  # the others' gradients are single operators that ONNX does not have
                if not self._rest_is_head:
                    return Tail(self._whole, example[0], names, self.dynamic_size)
                with torch.no_grad():
                    features = self.network.features(example)
                return Tail(self._head, features[0], names, self.dynamic_size)
        except (RuntimeError, NotImplementedError, TypeError, AssertionError) as error:
            where = " and ".join(names)
            raise ExportError(
                f"the gradient of {self.network.config.backbone} behind {where} cannot be traced ({first_line(error)}):"
                " --list-cam-layers lists the layers there are, and --cam none exports it without maps"
            ) from error

    def _head(self, features: Tensor, tap: Tap) -> Tensor:
        return self.network.penultimate(tap(self.layers[0].name, features))

    def _whole(self, inputs: Tensor, tap: Tap) -> Tensor:
        with tapped(self.network, [layer.name for layer in self.layers], tap):
            features = self.network.features(inputs)
            if any(layer.name == FEATURES_CALL for layer in self.layers):
                features = tap(FEATURES_CALL, features)
            return self.network.penultimate(features)

    @property
    def switches(self) -> tuple[str, ...]:
        """The outputs that need not be computed: the maps, and what they are made of."""
        evidence = (name for layer in self.layers for name in (layer.features, layer.gradients))
        return (*(one.name for one in self.maps if one.in_graph), *evidence)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what `forward` returns."""
        if not self.layers:
            return (SCORES, LOGITS, CLASSES)
        steps = [step_output(number) for number in range(len(self.layers))] if self.looped else []
        return (SCORES, LOGITS, CLASSES, *self.switches, OF_LOGITS, OF_PROBABILITIES, *steps)

    def forward(
        self,
        images: Tensor,
        targets: Tensor,
        softmax: Tensor | None = None,
        cotangents: Tensor | None = None,
        due: Sequence[Tensor] = (),
        ablated: Sequence[Tensor] = (),
    ) -> Any:
        """The tensors that `outputs` names.

        Args:
            images: uint8 `[N, H, W, 3]`.
            targets: int64 `[N or 1, K]`.
            softmax: bool `[N or 1, 1]`; like the others below, only where there are layers.
            cotangents: see `tlcli.exports.rewrite.target_choice`.
            due, ablated: a layer each, see `tlcli.exports.rewrite.ablation_loop`.
        """
        inputs = self.network.normalise(images)
        if self.tail is None:
            logits = self._logits(self.network.penultimate(self.network.features(inputs))) if self._is_cut else self.network(inputs)
            return logits.softmax(1), logits, _resolve(targets, logits)
        assert softmax is not None
        assert cotangents is not None
        z, activations, remembered = self.tail(self.network.features(inputs) if self._rest_is_head else inputs)
        logits = self._logits(z)
        classes, softmax = _resolve(targets, logits), _a_row_a_image(softmax, logits)
        of_logits = self._rows(classes)
        of_probabilities = self._of_probabilities(of_logits, logits, classes, softmax)
        if self._pooled_linear:  # the mean hands its gradient on in equal parts
            means: Sequence[Tensor] = [cotangents / (activations[0].shape[-2] * activations[0].shape[-1])]
            gradients: Sequence[Tensor] = [means[0][..., None, None]]
        else:
            gradients, means = self.tail.pull_back(cotangents, remembered)
        steps, found = [], {}
        for number, layer in enumerate(self.layers):
            found[layer.features] = activations[number]
            everywhere = gradients[number].expand(-1, -1, -1, *activations[number].shape[-2:]) if self._pooled_linear else gradients[number]
            found[layer.gradients] = everywhere
            if self.looped:
                steps.append(self._step(number, due[number], activations[number], remembered, logits, classes, softmax))
            evidence = Evidence(
                activations=activations[number],
                gradients=gradients[number],
                mean_gradients=means[number],
                class_weights=of_logits if self._pooled_linear else None,
                scores=_scores(logits, classes, softmax),
                ablated=ablated[number].transpose(1, 2) if self.looped else None,
            )
            for one in self.maps:
                if one.in_graph and one.layer == layer.name:
                    found[one.name] = FORMULAS[one.method](evidence)
        for one in self.maps:
            if one.in_graph and one.name not in found:
                found[one.name] = fuse([found[map_name(one.method, layer.name)] for layer in self.layers])
        return logits.softmax(1), logits, classes, *(found[name] for name in self.switches), of_logits, of_probabilities, *steps

    def _weight(self) -> Tensor:
        return self.network.last_layer.weight.flatten(1)

    def _rows(self, classes: Tensor) -> Tensor:
        """The classes' rows of the last layer's weight, `[N, K, d]`."""
        return functional.embedding(classes, self._weight())

    def _logits(self, z: Tensor) -> Tensor:
        return functional.linear(z, self._weight(), self.network.last_layer.bias)

    def _of_probabilities(self, rows: Tensor, logits: Tensor, classes: Tensor, softmax: Tensor) -> Tensor:
        """dy/dz, `[N, K, d]`, where some images' classes are explained by their probability p: `p (row - sum_j p_j row_j)`."""
        probabilities = _probabilities(logits)
        p = probabilities.gather(1, classes)[..., None]
        competing = p * (rows - (probabilities @ self._weight())[:, None])
        return torch.where(softmax[..., None], competing, rows)

    def _step(
        self,
        number: int,
        due: Tensor,
        activations: Tensor,
        remembered: tuple[Any, ...],
        logits: Tensor,
        classes: Tensor,
        softmax: Tensor,
    ) -> Tensor:
        """Scores of the explained classes without some channels, `[R, K]`."""
        channels = self.layers[number].channels
        images, channel = due // channels, due % channels
        if self._pooled_linear:  # what the channel adds to each logit is known
            share = activations.mean((-2, -1)).flatten().index_select(0, due)
            ablated = logits.index_select(0, images) - share[:, None] * self._weight().index_select(1, channel).t()
        else:
            kept = (torch.arange(channels)[None] != channel[:, None]).to(activations.dtype)
            assert self.tail is not None
            ablated = self._logits(self.tail.again(number, activations.index_select(0, images) * kept[..., None, None], images, remembered))
        return _scores(ablated, classes.index_select(0, images), softmax.index_select(0, images))


def is_pooled_linear(network: Network, layer: Spatial) -> bool:
    """Whether all that follows the layer is one linear layer on its spatial mean.

    Found by trying the head out, so that it holds for any backbone's own head.
    """
    if not layer.is_features:
        return False
    activations = torch.rand(2, layer.channels, layer.height, layer.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embedding, mean = network.penultimate(activations), activations.mean((-2, -1))
    return embedding.shape == mean.shape and torch.allclose(embedding, mean, rtol=1e-4, atol=1e-6)


def _scores(logits: Tensor, classes: Tensor, softmax: Tensor) -> Tensor:
    """What is explained, `[N, K]`: the classes' logits, or their probabilities."""
    return torch.where(softmax, _probabilities(logits).gather(1, classes), logits.gather(1, classes))


def _probabilities(logits: Tensor) -> Tensor:
    """The softmax, in other words than those of `scores`: so that no branch of the graph takes that output."""
    return logits.log_softmax(1).exp()


def _resolve(targets: Tensor, logits: Tensor) -> Tensor:
    """Class ids `[N, K]` for targets `[N or 1, K]`, of which -r means the r-th ranked."""
    count = logits.shape[1]
    wanted = _a_row_a_image(targets, logits)
    ranking = logits.topk(count, dim=1).indices
    ranked = ranking.gather(1, (-1 - wanted).clamp(0, count - 1))
    return torch.where(wanted < 0, ranked, wanted.clamp(0, count - 1))


def _a_row_a_image(values: Tensor, logits: Tensor) -> Tensor:
    """`[N or 1, ...]` to `[N, ...]`: one row serves all images."""
    rows = torch.minimum(torch.arange(logits.shape[0]), torch.scalar_tensor(values.shape[0] - 1, dtype=torch.int64))
    return values.index_select(0, rows)
