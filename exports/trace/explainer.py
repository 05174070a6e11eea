"""PyTorch module that is exported as the graph: it computes scores and maps from images and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tlcli.contract.errors import ExportError, first_line
from tlcli.contract.maps.method_names import METHODS, OF_ATTENTION, map_name
from tlcli.contract.model.description import CLASSES, FEATURES, FUSED, GRADIENTS, LOGITS, SCORES, Layer, MapOutput, Task
from tlcli.exports.rewrite.ablation_loop import step_output
from tlcli.exports.rewrite.masking_loop import masking_loop
from tlcli.exports.rewrite.target_choice import LOGIT_COTANGENTS, PROBABILITY_COTANGENTS
from tlcli.exports.trace.attention import find_attention
from tlcli.exports.trace.fuse_layers import fuse
from tlcli.exports.trace.last_layer import LinearLastLayer, last_layer_of
from tlcli.exports.trace.map_methods import (
    FORMULAS,
    MAX_MASKED_POSITIONS,
    NEEDS_ABLATION,
    NEEDS_ATTENTION_GRADIENTS,
    NEEDS_CLASS_WEIGHTS,
    NEEDS_DIFFERENCE,
    NEEDS_MASKING,
    AttentionInputs,
    CamInputs,
    neighbourhood_sums,
    position_masks,
)
from tlcli.exports.trace.similar_classes import difference, similar_classes
from tlcli.exports.trace.vjp import TracedTail
from tlcli.training.models.network import ImageNetwork, Network
from tlcli.training.models.target_layers import Tap, TargetLayer, resolve_layers, run_tapped, tapped, tapped_features


class Explainer(nn.Module):
    """Module that runs a network and computes its maps.

    `forward` returns the graph's outputs, followed by intermediate values. Later passes over the ONNX graph connect these values to the
    graph's extra inputs. `outputs` lists the names of all returned values in order.
    """

    def __init__(
        self,
        network: ImageNetwork,
        methods: Sequence[str] | None = None,
        layers: Sequence[str] | None = None,
        dynamic_size: bool = False,
        task: Task = "single-label",
    ) -> None:
        """Trace the part of the network after the explained layers, together with its gradient.

        Args:
            network: network in eval mode on the CPU, whose parameters do not require gradients.
            methods: names of the map methods, including those computed outside the graph; None selects all that the head supports, but
                Recipro-CAM only for layers of at most `MAX_MASKED_POSITIONS` positions; an empty sequence selects no method and no layer.
            layers: names of backbone layers to explain; None selects the last one with a spatial extent.
            dynamic_size: accept images of any height and width.
            task: `multi-label` for scores and probabilities that are sigmoids of the logits instead of their softmax.

        Raises:
            ExportError: a layer does not exist, the head does not support a method, an operator's gradient cannot be traced, or a layer's
                tokens fix the image size although `dynamic_size` is requested.
        """
        super().__init__()
        self.network = network
        self.last_layer = last_layer_of(network)
        self.dynamic_size = dynamic_size
        self._multi_label = task == "multi-label"
        with_maps = methods is None or len(methods) > 0
        targets = resolve_layers(network, layers) if with_maps else []
        if dynamic_size and any(target.layout.kind == "tokens" for target in targets):
            raise ExportError(
                f"{network.config.backbone} takes images of one size, because its layers return tokens: leave out --dynamic-size"
            )
        several = len(targets) > 1
        self.layers = tuple(
            Layer(
                name=target.name,
                features=map_name(FEATURES, target.name if several else None),
                gradients=map_name(GRADIENTS, target.name if several else None),
                channels=target.channels,
                height=target.height,
                width=target.width,
            )
            for target in targets
        )
        self._targets = tuple(targets)
        self._pooled_linear = len(targets) == 1 and is_pooled_linear(network, targets[0])
        self._attention = find_attention(network, targets) if methods is None or not set(OF_ATTENTION).isdisjoint(methods) else None
        self.methods = self._allowed_methods(methods)
        of_attention = self._attention is not None and not set(OF_ATTENTION).isdisjoint(self.methods)
        self._taps = (*targets, *(self._attention.layers if self._attention is not None and of_attention else ()))
        self.maps = self._map_outputs()
        self.looped = not NEEDS_ABLATION.isdisjoint(self.methods)
        self.masks_in_loop = not self._pooled_linear and not NEEDS_MASKING.isdisjoint(self.methods)
        self._tail_is_head = (
            len(self._taps) == 1 and targets[0].is_features and (not dynamic_size or targets[0].layout.kind == "channels_first")
        )
        self.tail = self._trace() if targets else None

    def _allowed_methods(self, methods: Sequence[str] | None) -> tuple[str, ...]:
        allowed = [
            name
            for name in METHODS
            if (self._pooled_linear or name not in NEEDS_CLASS_WEIGHTS) and (self._attention is not None or name not in OF_ATTENTION)
        ]
        for method in methods or ():
            if method not in METHODS:
                raise ExportError(f"unknown map method {method!r}: choose from {', '.join(METHODS)}")
            where = " and ".join(layer.name for layer in self.layers)
            if method not in allowed and method in OF_ATTENTION:
                raise ExportError(
                    f"{method} needs a vision transformer in whose blocks all tokens of the layer attend to each other;"
                    f" {self.network.config.backbone} is not, at {where}: choose from {', '.join(allowed)}"
                )
            if method not in allowed:
                raise ExportError(
                    f"{method} needs a head that is one linear layer on the layer's spatial mean; the head {self.network.config.head!r} of"
                    f" {self.network.config.backbone} is not, at {where}: choose from {', '.join(allowed)}"
                )
        if methods is not None:
            return tuple(name for name in allowed if name in methods)
        small = all(layer.height * layer.width <= MAX_MASKED_POSITIONS for layer in self.layers)
        return tuple(name for name in allowed if small or name not in NEEDS_MASKING)

    def _map_outputs(self) -> tuple[MapOutput, ...]:
        """Return the description of one map per method or, for several layers, one per method and layer plus their fused map."""
        if not self.layers:
            return ()
        several = len(self.layers) > 1
        fused = FUSED.join(layer.name for layer in self.layers)
        height, width = max(layer.height for layer in self.layers), max(layer.width for layer in self.layers)
        outputs = []
        for method in self.methods:
            for layer in self.layers:
                name = map_name(method, layer.name if several else None)
                outputs.append(MapOutput(name=name, method=method, layer=layer.name, height=layer.height, width=layer.width))
            if several:
                outputs.append(MapOutput(name=method, method=method, layer=fused, height=height, width=width))
        return tuple(outputs)

    def _trace(self) -> TracedTail:
        size = self.network.config.preprocessing
        example = torch.zeros(1, 3, size.height, size.width)
        names = [tap.name for tap in self._taps]
        try:
            with sdpa_kernel(SDPBackend.MATH):  # the gradients of the other kernels are single operators that ONNX does not have
                if not self._tail_is_head:
                    has_prefix = any(target.layout.prefix for target in self._targets)  # such as a class token
                    return TracedTail(self._from_inputs, example[0], names, self.dynamic_size, has_prefix)
                with torch.no_grad():
                    features = self._head().features(example)
                return TracedTail(self._from_features, features[0], names, self.dynamic_size)
        except (RuntimeError, NotImplementedError, TypeError, AssertionError) as error:
            where = " and ".join(layer.name for layer in self.layers)
            raise ExportError(
                f"the gradient of {self.network.config.backbone} after {where} cannot be traced ({first_line(error)}):"
                " choose another layer (--list-cam-layers lists them), or export it without maps (--cam none)"
            ) from error

    def _from_features(self, features: Tensor, tap: Tap) -> Tensor:
        layout = self._targets[0].layout
        return self._head().penultimate(layout.with_map(features, tap(self.layers[0].name, layout.to_map(features))))

    def _from_inputs(self, inputs: Tensor, tap: Tap) -> Tensor:
        if not isinstance(self.network, Network):
            return run_tapped(self.network, inputs, self._taps, tap)
        with tapped(self.network, self._taps, tap):
            return self.network.penultimate(tapped_features(self.network, inputs, self._taps, tap))

    def _head(self) -> Network:
        """Return the network, of which the caller uses the features or the head."""
        return cast("Network", self.network)

    @property
    def switches(self) -> tuple[str, ...]:
        """Names of the outputs that are computed on request: the maps, then each layer's features and gradients."""
        tensors = (name for layer in self.layers for name in (layer.features, layer.gradients))
        return (*(output.name for output in self.maps if output.in_graph), *tensors)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors that `forward` returns."""
        if not self.layers:
            return (SCORES, LOGITS, CLASSES)
        numbers = range(len(self.layers))
        steps = [step_output(number) for number in numbers] if self.looped else []
        masking_steps = [masking_loop(number).step for number in numbers] if self.masks_in_loop else []
        return (SCORES, LOGITS, CLASSES, *self.switches, LOGIT_COTANGENTS, PROBABILITY_COTANGENTS, *steps, *masking_steps)

    def forward(
        self,
        images: Tensor,
        targets: Tensor,
        softmax: Tensor | None = None,
        cotangents: Tensor | None = None,
        due: Sequence[Tensor] = (),
        ablated: Sequence[Tensor] = (),
        due_masks: Sequence[Tensor] = (),
        masked: Sequence[Tensor] = (),
    ) -> Any:
        """Compute the tensors named in `outputs`.

        Args:
            images: uint8 `[N, H, W, 3]`.
            targets: classes to explain, int64 `[N or 1, K]`; -r is the r-th ranked class.
            softmax: True for images whose classes are explained by their probabilities, bool `[N or 1, 1]`. Like the arguments below, it
                is used only by models with explained layers.
            cotangents: see `tlcli.exports.rewrite.target_choice`.
            due, ablated: one tensor per layer; see `tlcli.exports.rewrite.ablation_loop`.
            due_masks, masked: one tensor per layer; see `tlcli.exports.rewrite.masking_loop`.
        """
        inputs = self.network.normalise(images)
        if self.tail is None:
            logits = self.network(inputs)
            return self._scores(logits), logits, _class_ids(targets, logits)
        assert softmax is not None
        assert cotangents is not None
        z, tapped_values, residuals = self.tail(self._head().features(inputs) if self._tail_is_head else inputs)
        activations, weights = tapped_values[: len(self.layers)], tapped_values[len(self.layers) :]
        logits = self.last_layer.logits(z)
        query = _Query(logits, _class_ids(targets, logits), _row_per_image(softmax, logits), self._multi_label)
        logit_cotangents = self.last_layer.rows(query.classes)
        probability_cotangents = self._probability_cotangents(logit_cotangents, query)
        named: dict[str, Tensor] = {}
        steps: list[Tensor] = []
        masking_steps: list[Tensor] = []
        attention = self._attention_inputs(weights, cotangents, residuals) if weights else None
        differences = self._differences(cotangents, activations, residuals, query)
        for layer in self._layer_tensors(cotangents, activations, residuals, due, ablated):
            named[layer.layer.features] = layer.activations
            named[layer.layer.gradients] = layer.gradients_at_all_positions() if self._pooled_linear else layer.gradients
            if layer.due is not None:
                steps.append(self._ablation_step(layer, layer.due, residuals, query))
            inputs_of_maps = replace(
                self._cam_inputs(layer, query, logit_cotangents),
                difference=differences[layer.index] if differences else None,
                attention=attention,
            )
            if self.masks_in_loop:
                masking_steps.append(self._masking_step(layer, due_masks[layer.index], residuals, query))
                inputs_of_maps = replace(inputs_of_maps, masked=_at_positions(masked[layer.index], layer.activations))
            elif not NEEDS_MASKING.isdisjoint(self.methods):
                inputs_of_maps = replace(inputs_of_maps, masked=self._masked_scores(layer, query))
            named |= self._maps(layer, inputs_of_maps)
        named |= self._fused_maps(named)
        switched = [named[name] for name in self.switches]
        return self._scores(logits), logits, query.classes, *switched, logit_cotangents, probability_cotangents, *steps, *masking_steps

    def _scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self._multi_label else logits.softmax(1)

    def _layer_tensors(
        self,
        cotangents: Tensor,
        activations: Sequence[Tensor],
        residuals: tuple[Any, ...],
        due: Sequence[Tensor],
        ablated: Sequence[Tensor],
    ) -> list[LayerTensors]:
        """Collect the tensors of each layer, including its gradients. `due` and `ablated` are empty without Ablation-CAM."""
        gradients, means = self._gradients(cotangents, activations, residuals)
        absent = [None] * len(self.layers)
        columns = (self.layers, activations, gradients, means, due or absent, ablated or absent)
        return [LayerTensors(index, *row) for index, row in enumerate(zip(*columns, strict=True))]

    def _gradients(
        self, cotangents: Tensor, activations: Sequence[Tensor], residuals: tuple[Any, ...]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Compute the gradients of each layer, as in `LayerTensors`, and their spatial means."""
        if self._pooled_linear:  # the gradient of the mean is the same at every position
            mean = cotangents / (activations[0].shape[-2] * activations[0].shape[-1])
            return [mean[..., None, None]], [mean]
        assert self.tail is not None
        gradients, means = self.tail.pull_back(cotangents, residuals)
        return gradients[: len(self.layers)], means[: len(self.layers)]

    def _attention_inputs(self, weights: tuple[Tensor, ...], cotangents: Tensor, residuals: tuple[Any, ...]) -> AttentionInputs:
        """Return the attention weights and their gradients."""
        assert self._attention is not None
        assert self.tail is not None
        gradients: tuple[Tensor, ...] = ()
        if not NEEDS_ATTENTION_GRADIENTS.isdisjoint(self.methods):
            gradients = self.tail.pull_back(cotangents, residuals)[0][len(self.layers) :]
        layout = self._attention.layout
        return AttentionInputs(weights, gradients, self._attention.rows, layout.prefix, layout.height, layout.width)

    def _differences(
        self, cotangents: Tensor, activations: Sequence[Tensor], residuals: tuple[Any, ...], query: _Query
    ) -> list[CamInputs] | None:
        """Compute the inputs of Finer-CAM for each layer, with a backward pass of their own. None without Finer-CAM."""
        if NEEDS_DIFFERENCE.isdisjoint(self.methods):
            return None
        similar = similar_classes(query.logits, query.classes)
        theirs = replace(query, classes=similar.flatten(1))
        their_cotangents = self._probability_cotangents(self.last_layer.rows(theirs.classes), theirs)
        gradients, means = self._gradients(difference(cotangents, their_cotangents.reshape(*similar.shape, -1)), activations, residuals)
        return [
            CamInputs(of_layer, gradient, mean, None, query.scores())
            for of_layer, gradient, mean in zip(activations, gradients, means, strict=True)
        ]

    def _cam_inputs(self, layer: LayerTensors, query: _Query, class_rows: Tensor) -> CamInputs:
        """Return the inputs of a layer's maps, except for those of Finer-CAM and Recipro-CAM."""
        return CamInputs(
            activations=layer.activations,
            gradients=layer.gradients,
            mean_gradients=layer.mean_gradients,
            class_weights=class_rows if self._pooled_linear else None,
            scores=query.scores(),
            ablated=None if layer.ablated is None else layer.ablated.transpose(1, 2),
        )

    def _maps(self, layer: LayerTensors, inputs: CamInputs) -> dict[str, Tensor]:
        """Compute a layer's in-graph maps, by output name."""
        outputs = (output for output in self.maps if output.in_graph and output.layer == layer.layer.name)
        return {output.name: FORMULAS[output.method](inputs) for output in outputs}

    def _fused_maps(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the in-graph maps that are fused from the maps of several layers, by output name."""
        return {
            output.name: fuse([named[map_name(output.method, layer.name)] for layer in self.layers])
            for output in self.maps
            if output.in_graph and output.name not in named
        }

    def _probability_cotangents(self, rows: Tensor, query: _Query) -> Tensor:
        """Compute dy/dz `[N, K, d]`, the derivatives of the explained scores with respect to the embedding.

        It is `p (row - sum_j p_j row_j)` for images whose classes are explained by their probability p, and `row` for all others. With
        several labels per image, p is a sigmoid and its derivative `p (1 - p) row`.
        """
        probabilities = query.probabilities()
        p = probabilities.gather(1, query.classes)[..., None]
        competing = p * (1 - p) * rows if self._multi_label else p * (rows - self.last_layer.mean_row(probabilities)[:, None])
        return torch.where(query.softmax[..., None], competing, rows)

    def _ablation_step(self, layer: LayerTensors, due: Tensor, residuals: tuple[Any, ...], query: _Query) -> Tensor:
        """Compute the explained scores `[R, K]` with the channel in each row of `due` set to zero."""
        channels = layer.layer.channels
        images, channel = due // channels, due % channels
        if self._pooled_linear:  # each channel's contribution to the logits is known
            share = layer.activations.mean((-2, -1)).flatten().index_select(0, due)
            assert isinstance(self.last_layer, LinearLastLayer)
            logits = query.logits.index_select(0, images) - share[:, None] * self.last_layer.weight.index_select(1, channel).t()
        else:
            assert self.tail is not None
            kept = (torch.arange(channels)[None] != channel[:, None]).to(layer.activations.dtype)
            changed = layer.activations.index_select(0, images) * kept[..., None, None]
            logits = self.last_layer.logits(self.tail.from_activations(layer.index, changed, images, residuals))
        return query.with_logits(logits, images).scores()

    def _masking_step(self, layer: LayerTensors, due: Tensor, residuals: tuple[Any, ...], query: _Query) -> Tensor:
        """Compute the explained scores `[R, K]` with the activations masked around the position in each row of `due`."""
        assert self.tail is not None
        height, width = layer.activations.shape[-2:]
        count = torch.scalar_tensor(height * width, dtype=torch.int64)
        images, positions = due // count, due % count
        changed = layer.activations.index_select(0, images) * position_masks(positions, height, width)[:, None]
        logits = self.last_layer.logits(self.tail.from_activations(layer.index, changed, images, residuals))
        return query.with_logits(logits, images).scores()

    def _masked_scores(self, layer: LayerTensors, query: _Query) -> Tensor:
        """Compute the scores of `_masking_step` at all positions, `[N, K, h, w]`, for one linear layer on the spatial mean."""
        number, _, height, width = layer.activations.shape
        means = neighbourhood_sums(layer.activations).flatten(2).transpose(1, 2) / (height * width)
        images = torch.arange(number)[:, None].expand(-1, height * width).flatten()
        scores = query.with_logits(self.last_layer.logits(means.flatten(0, 1)), images).scores()
        return _at_positions(scores.reshape(number, height * width, -1), layer.activations)


@dataclass(frozen=True)
class LayerTensors:
    """Tensors of one explained layer, for N images and K classes per image.

    index: index of the layer among the explained layers.
    activations: `[N, c, h, w]`.
    gradients: `[N, K, c, h, w]`, or `[N, K, c, 1, 1]` if they are the same at all positions.
    mean_gradients: means of the gradients over the positions, `[N, K, c]`.
    due, ablated: see `tlcli.exports.rewrite.ablation_loop`; None without Ablation-CAM.
    """

    index: int
    layer: Layer
    activations: Tensor
    gradients: Tensor
    mean_gradients: Tensor
    due: Tensor | None
    ablated: Tensor | None

    def gradients_at_all_positions(self) -> Tensor:
        """Return the gradients expanded to all positions, `[N, K, c, h, w]`."""
        return self.gradients.expand(-1, -1, -1, *self.activations.shape[-2:])


@dataclass(frozen=True)
class _Query:
    """Logits with the classes to explain.

    logits: `[N, C]`.
    classes: ids of the explained classes, `[N, K]`.
    softmax: `[N, 1]`, True for images whose classes are explained by their probabilities instead of their logits.
    multi_label: True if probabilities are sigmoids.
    """

    logits: Tensor
    classes: Tensor
    softmax: Tensor
    multi_label: bool

    def probabilities(self) -> Tensor:
        """Compute the probabilities `[N, C]` with different operators than the output `scores`, so that no branch depends on it."""
        return 1 / (1 + (-self.logits).exp()) if self.multi_label else self.logits.log_softmax(1).exp()

    def scores(self) -> Tensor:
        """Return the explained scores, `[N, K]`: probabilities where `softmax` is True, logits elsewhere."""
        return torch.where(self.softmax, self.probabilities().gather(1, self.classes), self.logits.gather(1, self.classes))

    def with_logits(self, logits: Tensor, images: Tensor) -> _Query:
        """Return the query of logits `[R, C]` for the images in `images`, int64 `[R]`."""
        return _Query(logits, self.classes.index_select(0, images), self.softmax.index_select(0, images), self.multi_label)


def is_pooled_linear(network: ImageNetwork, layer: TargetLayer) -> bool:
    """Return True if the layer is followed only by its spatial mean and one linear layer.

    The head is tested on random activations, so the result is valid for any backbone's own head.
    """
    if not layer.is_features or not isinstance(network, Network):
        return False
    activations = torch.rand(2, layer.channels, layer.height, layer.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embedding, mean = network.penultimate(layer.layout.from_map(activations)), activations.mean((-2, -1))
    return embedding.shape == mean.shape and torch.allclose(embedding, mean, rtol=1e-4, atol=1e-6)


def _at_positions(scores: Tensor, activations: Tensor) -> Tensor:
    """Turn scores `[N, h * w, K]` into maps `[N, K, h, w]` of the size of the activations.

    The rows are selected one by one, so that the tracer need not know that their number is `h * w`.
    """
    height, width = activations.shape[-2:]
    rows = scores.index_select(1, torch.arange(height * width))
    return rows.transpose(1, 2).reshape(rows.shape[0], rows.shape[2], height, width)


def _class_ids(targets: Tensor, logits: Tensor) -> Tensor:
    """Convert targets `[N or 1, K]`, in which -r stands for the r-th ranked class, to class ids `[N, K]`."""
    count = logits.shape[1]
    targets = _row_per_image(targets, logits)
    ranking = logits.topk(count, dim=1).indices
    ranked = ranking.gather(1, (-1 - targets).clamp(0, count - 1))
    return torch.where(targets < 0, ranked, targets.clamp(0, count - 1))


def _row_per_image(values: Tensor, logits: Tensor) -> Tensor:
    """Expand `[N or 1, ...]` to `[N, ...]` by repeating a single row for all images."""
    rows = torch.minimum(torch.arange(logits.shape[0]), torch.scalar_tensor(values.shape[0] - 1, dtype=torch.int64))
    return values.index_select(0, rows)
