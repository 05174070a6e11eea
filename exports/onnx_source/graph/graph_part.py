"""Parts of an observed graph, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper

from tlcli.contract.errors import ExportError, first_line
from tlcli.exports.onnx_source.graph.image_count import COUNT, counting_node
from tlcli.exports.onnx_source.graph.observed_graph import ObservedGraph
from tlcli.exports.rewrite.graph_edit import upstream_nodes

Array = npt.NDArray[Any]


def open_session(model: ModelProto, optimized: bool = True) -> Any:
    """Return a session for a model on the CPU.

    Args:
        model: the model.
        optimized: False for a session that is used once: ONNX Runtime's optimizations take seconds for a large graph.

    Raises:
        ExportError: ONNX Runtime refuses the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise ExportError(f"ONNX Runtime cannot load the graph ({first_line(error)})") from error


def layer_nodes(graph: ObservedGraph, layers: Sequence[str], end: str) -> tuple[set[str], list[NodeProto]]:
    """Return the values that depend on the layers, and the nodes between the layers and the value `end`, in order."""
    dependents = graph.dependents(layers)
    needed = graph.ancestors(end)
    nodes = [node for index, node in enumerate(graph.nodes) if index in needed and not dependents.isdisjoint(node.input)]
    return dependents, nodes


def tail_nodes(graph: ObservedGraph, layer: str, end: str) -> tuple[set[str], list[NodeProto]]:
    """Return the nodes that compute the value `end` from a layer and the number of images, in order, and the values that they compute.

    They are those of `layer_nodes`, and those that compute shapes and indices from the number of images.
    """
    dependents, _ = layer_nodes(graph, [layer], end)
    counted = graph.producer.keys() - graph.dependents([graph.input])
    own = (dependents | counted) - {layer, COUNT}
    nodes = [node for node in graph.nodes if not own.isdisjoint(node.output)]
    reached = upstream_nodes(nodes, [end])
    nodes = [node for index, node in enumerate(nodes) if index in reached]
    if any(COUNT in node.input for node in nodes):
        nodes.insert(0, counting_node(layer))
    return {layer, *(name for node in nodes for name in node.output if name)}, nodes


def values_of(graph: ObservedGraph, names: Sequence[str], images: Array) -> dict[str, Array]:
    """Compute values of the graph for a batch of inputs."""
    nodes = [graph.nodes[index] for index in sorted(upstream_nodes(graph.nodes, names))]
    taken = {name for node in nodes for name in node.input}
    constants = [weight for weight in graph.model.graph.initializer if weight.name in taken]
    outputs = [helper.make_empty_tensor_value_info(name) for name in names]
    part = helper.make_graph(nodes, "part", list(graph.model.graph.input), outputs, constants)
    model = helper.make_model(part, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version)
    return dict(zip(names, open_session(model, optimized=False).run(names, {graph.input: images}), strict=True))


class Tail:
    """Part of a graph from a layer to the logits, in float32.

    saved: names of the other values that it takes, which are computed from the images.
    """

    def __init__(self, graph: ObservedGraph, layer: str, logits: str) -> None:
        """Cut the graph behind the layer.

        Raises:
            ExportError: the part behind the layer needs a value without a batch axis, such as indices that depend on the images.
        """
        self._layer, self._logits = layer, logits
        dependents, nodes = tail_nodes(graph, layer, logits)
        outside = {name for node in nodes for name in node.input if name and name not in dependents}
        self.saved = sorted(outside - graph.constants.keys())
        for name in self.saved:
            if name not in graph.extents:
                raise ExportError(f"{name}, which the part behind {layer} needs, has no batch axis: choose another --cam-layer")
        inputs = [helper.make_tensor_value_info(name, 1, [None] * graph.extents[name].rank) for name in (layer, *self.saved)]
        constants = [weight for weight in graph.model.graph.initializer if weight.name in outside]
        tail = helper.make_graph(nodes, "tail", inputs, [helper.make_empty_tensor_value_info(logits)], constants)
        model = helper.make_model(tail, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version)
        self._session = open_session(model, optimized=False)

    def __call__(self, activations: Array, saved: dict[str, Array]) -> npt.NDArray[np.float32]:
        """Return the logits `[R, C]` for activations of R rows, and the saved values of as many rows."""
        (logits,) = self._session.run([self._logits], {self._layer: activations, **saved})
        return np.asarray(logits).reshape(len(activations), -1)
