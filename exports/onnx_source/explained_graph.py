"""Flat graph of a foreign classifier with its maps: the file's own nodes, its gradient, and the map formulas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from tlcli.contract.errors import ExportError
from tlcli.contract.maps.method_names import METHODS, map_name
from tlcli.contract.model.description import (
    CLASSES,
    FEATURES,
    FUSED,
    GRADIENTS,
    IMAGES,
    LOGITS,
    SCORES,
    SOFTMAX,
    TARGETS,
    Layer,
    MapOutput,
)
from tlcli.exports.onnx_source.classifier import Classifier
from tlcli.exports.onnx_source.gradients.class_rows import ClassRows
from tlcli.exports.onnx_source.gradients.gradient_flow import GradientFlow, UnsupportedOperatorError
from tlcli.exports.onnx_source.gradients.rules import RULES
from tlcli.exports.onnx_source.graph.extents import Extent
from tlcli.exports.onnx_source.graph.graph_part import layer_nodes, tail_nodes
from tlcli.exports.onnx_source.graph.node_writer import NodeWriter, sizes
from tlcli.exports.onnx_source.graph.observed_graph import ObservedGraph
from tlcli.exports.onnx_source.graph.source_file import shown
from tlcli.exports.onnx_source.image_input import ImageInput
from tlcli.exports.onnx_source.map_formulas import FORMULAS, CamValues, fuse
from tlcli.exports.onnx_source.spatial_values import SpatialValue, SpatialValues
from tlcli.exports.onnx_source.token_map import as_map
from tlcli.exports.rewrite.ablation_loop import ablated_input, due_input, step_output
from tlcli.exports.rewrite.closed_graph import GraphLayout
from tlcli.exports.rewrite.graph_edit import copied, rename
from tlcli.exports.rewrite.target_choice import COTANGENTS, LOGIT_COTANGENTS, PROBABILITY_COTANGENTS

_NEEDS_CLASS_WEIGHTS = frozenset({"cam"})
_SAME_NUMBERS = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Dropout"})


class ExplainedGraph:
    """Foreign classifier with the nodes of its maps.

    layout: inputs and outputs of the flat graph.
    spatial: the explained maps of the file, in the order of `layout.layers`; those in tokens have become values of their own.
    """

    def __init__(
        self,
        graph: ObservedGraph,
        classifier: Classifier,
        spatial: Sequence[SpatialValue],
        names: Sequence[str],
        methods: Sequence[str] | None,
        images: ImageInput,
        where: str,
        scores: str = "",
        fixed_batch: int | None = None,
    ) -> None:
        """Choose the maps.

        Args:
            graph: observed graph.
            classifier: its logits.
            spatial: values to explain; empty for a file without maps.
            names: names of the layers in the description, one per value.
            methods: names of the map methods; None selects all that the graph supports.
            images: form of the images.
            where: name of the file for messages.
            scores: output of the file.
            fixed_batch: number of images that the file takes at a time; None for any.

        Raises:
            ExportError: the graph does not support a method.
        """
        self.scores = scores
        self.fixed_batch = fixed_batch
        self.graph = graph
        self.classifier = classifier
        self.spatial = tuple(as_map(graph, value) for value in spatial)
        self._images = images
        self._where = where
        several = len(spatial) > 1
        layers = tuple(
            Layer(
                name=name,
                features=map_name(FEATURES, name if several else None),
                gradients=map_name(GRADIENTS, name if several else None),
                channels=value.channels,
                height=value.height,
                width=value.width,
            )
            for name, value in zip(names, spatial, strict=True)
        )
        self.pooled_linear = len(spatial) == 1 and self._is_pooled_linear(self.spatial[0])
        maps = _map_outputs(self._allowed(methods), layers) if layers else ()
        tensors = (name for layer in layers for name in (layer.features, layer.gradients))
        switches = (*(output.name for output in maps if output.in_graph), *tensors)
        self.layout = GraphLayout(images.preprocessing, classifier.classes, layers, maps, switches)

    def _allowed(self, methods: Sequence[str] | None) -> tuple[str, ...]:
        allowed = [name for name in METHODS if self._is_offered(name)]
        for method in methods or ():
            if method not in METHODS:
                raise ExportError(f"unknown map method {method!r}: choose from {', '.join(METHODS)}")
            if method not in allowed:
                raise ExportError(
                    f"{self._where}: {method} is not available for this layer: it needs a head that is one linear layer on the layer's"
                    f" spatial mean; choose from {', '.join(allowed)}"
                )
        return tuple(name for name in allowed if methods is None or name in methods)

    def _is_offered(self, method: str) -> bool:
        if METHODS[method].in_graph and method not in FORMULAS:
            return False
        return self.pooled_linear or method not in _NEEDS_CLASS_WEIGHTS

    def _is_pooled_linear(self, layer: SpatialValue) -> bool:
        """Return True if only the spatial mean and one fully connected layer follow the layer."""
        last = self.classifier.last_layer
        if last is None:
            return False
        value, graph = last.embedding, self.graph
        while (node := graph.maker(value)) is not None and node.op_type in _SAME_NUMBERS:
            value = node.input[0]
        if node is None or not _is_spatial_mean(graph, node, layer):
            return False
        return node.input[0] in (layer.name, layer.tokens) and graph.extents[last.embedding].dims == (1, layer.channels)

    def flat(self) -> ModelProto:
        """Return the flat graph, for `closed_graph.close_graph`.

        Raises:
            ExportError: an operator after a layer has no gradient rule.
        """
        first = NodeWriter("images/")
        self._images.write(first, IMAGES, self.graph.input)
        maps = _MapWriter(self)
        maps.write()
        source = self.graph.model
        nodes = [*first.nodes, *self.graph.nodes, *maps.writer.nodes]
        constants = [*source.graph.initializer, *first.constants, *maps.writer.constants]
        graph = helper.make_graph(nodes, "tlcli", *self._interface(), constants)
        return helper.make_model(graph, opset_imports=source.opset_import, ir_version=source.ir_version)

    def _interface(self) -> tuple[list[ValueInfoProto], list[ValueInfoProto]]:
        """Return the inputs and outputs of the flat graph."""
        layout = self.layout
        inputs = [_info(IMAGES, TensorProto.UINT8, 4), _info(TARGETS, TensorProto.INT64, 2)]
        outputs = [_info(SCORES, TensorProto.FLOAT, 2), _info(LOGITS, TensorProto.FLOAT, 2), _info(CLASSES, TensorProto.INT64, 2)]
        if not layout.layers:
            return inputs, outputs
        inputs += [_info(SOFTMAX, TensorProto.BOOL, 2), _info(COTANGENTS, TensorProto.FLOAT, 3)]
        looped = range(len(layout.layers) if layout.looped else 0)
        for number in looped:
            inputs += [_info(due_input(number), TensorProto.INT64, 1), _info(ablated_input(number), TensorProto.FLOAT, 3)]
        ranks = {layer.features: 4 for layer in layout.layers} | {layer.gradients: 5 for layer in layout.layers}
        outputs += [_info(name, TensorProto.FLOAT, ranks.get(name, 4)) for name in layout.switches]
        outputs += [_info(name, TensorProto.FLOAT, 3) for name in (LOGIT_COTANGENTS, PROBABILITY_COTANGENTS)]
        outputs += [_info(step_output(number), TensorProto.FLOAT, 2) for number in looped]
        return inputs, outputs

    def unsupported(self, error: UnsupportedOperatorError) -> ExportError:
        """Return the error for an operator without a gradient rule."""
        layers = " and ".join(layer.name for layer in self.layout.layers)
        behind = self._layer_behind(error.node)
        choice = f"choose a layer behind it with --cam-layer, such as {behind}" if behind else "no layer behind it has a height and a width"
        return ExportError(
            f"{self._where}: no gradient rule for {error} ({error.node.name}), after {layers}: {choice}, or export it without maps"
            " (--cam none)"
        )

    def _layer_behind(self, node: NodeProto) -> str | None:
        """Return the last layer that neither this node nor any operator without a gradient rule follows."""
        logits = self.classifier.logits
        path = [self.graph.nodes[index] for index in self.graph.ancestors(logits)]
        without_rule = {name for other in path if other.op_type not in RULES for name in other.output}
        spatial = SpatialValues(self.graph, logits, self._images.channels_last, self._where)
        for value in reversed(spatial()):
            if self.graph.dependents([value.name]).isdisjoint(without_rule | {*node.output}) and spatial.is_explainable(value):
                return shown(value.name)
        return None


def _info(name: str, kind: int, rank: int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [None] * rank)


def _is_spatial_mean(graph: ObservedGraph, node: NodeProto, layer: SpatialValue) -> bool:
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "GlobalAveragePool":
        return not layer.channels_last
    if node.op_type == "AveragePool":
        return list(attributes["kernel_shape"]) == [layer.height, layer.width] and not any(attributes.get("pads", []))
    if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in graph.constants:
        return False
    rank = graph.extents[node.input[0]].rank
    axes = sorted(int(axis) % rank for axis in graph.constants[node.input[1]].ravel())
    if layer.tokens:
        return axes == [1] and graph.extents[node.input[0]].dims[1] == layer.height * layer.width
    return axes == ([1, 2] if layer.channels_last else [2, 3])


def _map_outputs(methods: Sequence[str], layers: Sequence[Layer]) -> tuple[MapOutput, ...]:
    """Return the description of one map per method or, for several layers, one per method and layer plus their fused map."""
    several = len(layers) > 1
    height, width = max(layer.height for layer in layers), max(layer.width for layer in layers)
    outputs = []
    for method in methods:
        for layer in layers:
            name = map_name(method, layer.name if several else None)
            outputs.append(MapOutput(name=name, method=method, layer=layer.name, height=layer.height, width=layer.width))
        if several:
            fused = FUSED.join(layer.name for layer in layers)
            outputs.append(MapOutput(name=method, method=method, layer=fused, height=height, width=width))
    return tuple(outputs)


class _MapWriter:
    """Writer of the nodes that follow the file's own: classes, gradients, maps."""

    def __init__(self, explained: ExplainedGraph) -> None:
        self.writer = NodeWriter("maps/")
        self._op = self.writer.op
        self._explained = explained
        self._graph = explained.graph
        self._classifier = explained.classifier
        self._layout = explained.layout

    def write(self) -> None:
        writer, classes = self.writer, self._classifier.classes
        logits = self._classifier.logits
        self._logits = logits if self._classifier.flat else self._op("Reshape", logits, sizes(-1, classes))
        writer.named("Identity", [self._logits], LOGITS)
        writer.named("Softmax", [self._logits], SCORES, axis=1)
        self._classes = self._class_ids()
        writer.named("Identity", [self._classes], CLASSES)
        if not self._layout.layers:
            return
        self._softmax = self._row_per_image(SOFTMAX)
        self._probabilities = self._op("Exp", self._op("LogSoftmax", self._logits, axis=1))
        rows = self._cotangents()
        scores = self._scores(self._logits, self._classes, self._softmax)
        gradients = self._gradients()
        made: dict[str, str] = {}
        for number, (layer, value) in enumerate(zip(self._layout.layers, self._explained.spatial, strict=True)):
            activations = self._op("Transpose", value.name, perm=[0, 3, 1, 2]) if value.channels_last else value.name
            activations = self._op("Identity", activations)
            writer.named("Identity", [activations], layer.features)
            full, mean = gradients[number]
            whole = full or self._op("Mul", self._op("Unsqueeze", mean, sizes(3, 4)), np.ones((layer.height, layer.width), np.float32))
            writer.named("Identity", [whole], layer.gradients)
            looped = self._layout.looped
            if looped:
                self._ablation_step(number, layer, value, activations)
            values = CamValues(
                writer,
                layer.height,
                layer.width,
                activations,
                full,
                mean,
                rows if self._explained.pooled_linear else None,
                scores,
                ablated_input(number) if looped else None,
                self._classes,
            )
            for output in self._layout.maps:
                if output.in_graph and output.layer == layer.name:
                    made[output.name] = FORMULAS[output.method](values)
        self._write_maps(made)

    def _write_maps(self, made: dict[str, str]) -> None:
        """Name the maps, and add the fused ones."""
        layers = self._layout.layers
        for output in self._layout.maps:
            if not output.in_graph:
                continue
            if output.name not in made:
                parts = [made[map_name(output.method, layer.name)] for layer in layers]
                made[output.name] = fuse(self.writer, parts, [(layer.height, layer.width) for layer in layers])
            self.writer.named("Identity", [made[output.name]], output.name)

    def _row_per_image(self, values: str) -> str:
        """Expand `[N or 1, ...]` to `[N, ...]` by repeating a single row for all images."""
        count = self._op("Squeeze", self._op("Shape", self._logits, start=0, end=1))
        zero, one = np.array(0), np.array(1)
        last = self._op("Sub", self._op("Squeeze", self._op("Shape", values, start=0, end=1)), one)
        return self._op("Gather", values, self._op("Min", self._op("Range", zero, count, one), last), axis=0)

    def _class_ids(self) -> str:
        """Convert targets `[N or 1, K]`, in which -r stands for the r-th ranked class, to class ids `[N, K]`."""
        last = np.array(self._classifier.classes - 1)
        targets = self._row_per_image(TARGETS)
        _, ranking = self.writer.ops("TopK", self._logits, sizes(self._classifier.classes), outputs=2, axis=1)
        ranks = self._op("Clip", self._op("Sub", np.array(-1), targets), np.array(0), last)
        ranked = self._op("GatherElements", ranking, ranks, axis=1)
        return self._op("Where", self._op("Less", targets, np.array(0)), ranked, self._op("Clip", targets, np.array(0), last))

    def _scores(self, logits: str, classes: str, softmax: str) -> str:
        """Return the explained scores: probabilities where `softmax` is True, logits elsewhere."""
        probabilities = self._op("Exp", self._op("LogSoftmax", logits, axis=1))
        chosen = (self._op("GatherElements", values, classes, axis=1) for values in (probabilities, logits))
        return self._op("Where", softmax, *chosen)

    def _cotangents(self) -> str:
        """Write the derivatives of the explained scores with respect to the embedding, or to the logits without a last linear layer.

        They are `row` for a logit, and `p (row - sum_j p_j row_j)` for a probability p.

        Returns:
            Name of the rows of the last layer's weight, `[N, K, d]`.
        """
        last = self._classifier.last_layer
        if last is None:
            ends = np.array([0, 1], dtype=np.float32)
            rows = self._op("OneHot", self._classes, np.array(self._classifier.classes), ends, axis=-1)
            mean = self._probabilities
        elif last.by_class:
            rows = self._op("Gather", last.weight, self._classes, axis=0)
            mean = self._op("MatMul", self._probabilities, last.weight)
        else:
            rows = self._op("Transpose", self._op("Gather", last.weight, self._classes, axis=1), perm=[1, 2, 0])
            mean = self._op("Gemm", self._probabilities, last.weight, transB=1)
        self.writer.named("Identity", [rows], LOGIT_COTANGENTS)
        p = self._op("Unsqueeze", self._op("GatherElements", self._probabilities, self._classes, axis=1), sizes(2))
        competing = self._op("Mul", p, self._op("Sub", rows, self._op("Unsqueeze", mean, sizes(1))))
        self.writer.named("Where", [self._op("Unsqueeze", self._softmax, sizes(2)), competing, rows], PROBABILITY_COTANGENTS)
        return rows

    def _gradients(self) -> list[tuple[str | None, str]]:
        """Return, for each layer, its gradients `[N, K, c, h, w]` (None if they are the same everywhere), and their means `[N, K, c]`."""
        spatial = self._explained.spatial
        if self._explained.pooled_linear:
            (layer,) = spatial
            return [(None, self._op("Mul", COTANGENTS, 1 / (layer.height * layer.width)))]
        last = self._classifier.last_layer
        start = self._classifier.logits if last is None else last.embedding
        names = [value.name for value in spatial]
        dependents, nodes = layer_nodes(self._graph, names, start)
        rows = ClassRows(self.writer, self._classes)
        flow = GradientFlow(self._graph, self.writer, rows, dependents, RULES)
        try:
            flow.pull_back(start, rows.merge(COTANGENTS, self._graph.extents[start]), nodes)
        except UnsupportedOperatorError as error:
            raise self._explained.unsupported(error) from error
        results: list[tuple[str | None, str]] = []
        for value in spatial:
            if not flow.has_gradient(value.name):
                raise ExportError(f"the logits do not depend on {value.name} in a differentiable way: choose another --cam-layer")
            extent = self._graph.extents[value.name]
            gradient = self._class_view(rows, flow.gradient_of(value.name), extent)
            if value.channels_last:
                gradient = self._op("Transpose", gradient, perm=[0, 1, 4, 2, 3])
            results.append((gradient, self._op("ReduceMean", gradient, sizes(3, 4), keepdims=0)))
        return results

    def _class_view(self, rows: ClassRows, gradient: str, extent: Extent) -> str:
        """Return the gradient of a layer as `[N, K, ...]`."""
        shape = self._op("Concat", sizes(-1), rows.count, sizes(*extent.dims[1:]), axis=0)
        return self._op("Reshape", gradient, shape)

    def _ablation_step(self, number: int, layer: Layer, value: SpatialValue, activations: str) -> None:
        """Write one step of Ablation-CAM: the explained scores with the channel in each row of `due` set to zero."""
        due, channels = due_input(number), np.array(layer.channels)
        images, channel = self._op("Div", due, channels), self._op("Mod", due, channels)
        if self._explained.pooled_linear:
            logits = self._logits_without(layer, activations, due, images, channel)
        else:
            kept = self._op("Equal", self._op("Unsqueeze", channel, sizes(1)), sizes(*range(layer.channels)))
            kept = self._op("Sub", 1.0, self._op("Cast", kept, to=TensorProto.FLOAT))
            shape = sizes(-1, 1, 1, layer.channels) if value.channels_last else sizes(-1, layer.channels, 1, 1)
            changed = self._op("Mul", self._op("Gather", value.name, images, axis=0), self._op("Reshape", kept, shape))
            logits = self._logits_from(number, value, changed, images)
        classes, softmax = (self._op("Gather", rows, images, axis=0) for rows in (self._classes, self._softmax))
        self.writer.named("Identity", [self._scores(logits, classes, softmax)], step_output(number))

    def _logits_without(self, layer: Layer, activations: str, due: str, images: str, channel: str) -> str:
        """Return the logits without a channel whose contribution is known."""
        last = self._classifier.last_layer
        assert last is not None
        means = self._op("Reshape", self._op("ReduceMean", activations, sizes(2, 3), keepdims=0), sizes(-1))
        share = self._op("Unsqueeze", self._op("Gather", means, due, axis=0), sizes(1))
        rows = self._op("Gather", last.weight, channel, axis=1 if last.by_class else 0)
        rows = self._op("Transpose", rows, perm=[1, 0]) if last.by_class else rows
        return self._op("Sub", self._op("Gather", self._logits, images, axis=0), self._op("Mul", share, rows))

    def _logits_from(self, number: int, value: SpatialValue, changed: str, images: str) -> str:
        """Copy the nodes after a layer, so that they compute the logits of changed activations. Return the logits `[R, C]`."""
        graph, logits = self._graph, self._classifier.logits
        dependents, nodes = tail_nodes(graph, value.name, logits)
        names = {value.name: changed}
        for node in nodes:
            copy = copied(node)
            for name in {name for name in node.input if name} - names.keys():
                if name in graph.constants:
                    continue
                if name in dependents or name not in graph.extents:
                    raise ExportError(
                        f"{node.op_type} ({node.name}) fixes the number of images, which Ablation-CAM changes: leave it out with --cam"
                    )
                names[name] = self._rows_of(name, graph.extents[name], images)
            names |= {name: f"ablation/{number}/copy/{name}" for name in node.output if name}
            rename(copy, names, f"ablation/{number}/copy/")
            self.writer.nodes.append(copy)
        result = names[logits]
        return result if self._classifier.flat else self._op("Reshape", result, sizes(-1, self._classifier.classes))

    def _rows_of(self, name: str, extent: Extent, images: str) -> str:
        """Return the rows of a value that belong to the given images."""
        before, after = extent.dims[: extent.batch], extent.dims[extent.batch :]
        blocks = self._op("Reshape", name, sizes(*before, -1, *after))
        chosen = self._op("Gather", blocks, images, axis=extent.batch)
        return self._op("Reshape", chosen, sizes(*before, -1, *after[1:]))
