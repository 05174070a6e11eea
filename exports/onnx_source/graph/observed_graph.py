"""Graph of a foreign file with the shape of every value, as observed by running it on batches of two and of three images.

Observation replaces shape inference: it needs no rule for an operator, and shows which axis of a value is the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tlcli.contract.errors import ExportError, first_line
from tlcli.exports.onnx_source.graph.extents import Extent, common_extent
from tlcli.exports.onnx_source.graph.free_batch import free_batch
from tlcli.exports.onnx_source.graph.image_count import use_image_count
from tlcli.exports.onnx_source.graph.joint_rows import separate_rows
from tlcli.exports.onnx_source.graph.source_file import SourceFile, constant_value, shown
from tlcli.exports.rewrite.graph_edit import add_constant, copied, producers, replace_nodes, take_instead, taken_by, upstream_nodes

_SIZES = (2, 3)
"""Batch sizes of the two observations."""
_SHAPE_OPERATORS = frozenset({"Shape", "Size"})

Array = npt.NDArray[Any]


class ObservedGraph:
    """Nodes of a foreign graph in topological order, reduced to those that depend on the images.

    model: model with these nodes, whose other values are initializers.
    nodes: its nodes.
    input: name of the input.
    extents: shapes of the float values that depend on the images.
    constants: initializers by name.
    sample: values of the graph's output for the first batch.
    """

    def __init__(
        self, model: ModelProto, source_input: str, extents: dict[str, Extent], sample: Array, images: Callable[[int], Array]
    ) -> None:
        self.model = model
        self.input = source_input
        self.extents = extents
        self.sample = sample
        self._images = images
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.constants: dict[str, Array] = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
        self.producer = producers(self.nodes)

    def insert_behind(
        self, value: str, replacement: str, nodes: Sequence[NodeProto], constants: Sequence[TensorProto], extents: dict[str, Extent]
    ) -> None:
        """Insert nodes behind a value, and let all that took the value take `replacement` instead."""
        place = 1 + self.producer[value]
        for node in self.nodes[place:]:
            take_instead(node, value, replacement)
        self.nodes[place:place] = nodes
        self.producer = producers(self.nodes)
        replace_nodes(self.model.graph, self.nodes)
        self.nodes = list(self.model.graph.node)
        self.model.graph.initializer.extend(constants)
        self.constants |= {weight.name: numpy_helper.to_array(weight) for weight in constants}
        self.extents |= extents

    def noise(self, count: int) -> Array:
        """Return a batch of noise images for the input."""
        return self._images(count)

    def maker(self, value: str) -> NodeProto | None:
        """Return the node that computes a value; None for the input and for constants."""
        index = self.producer.get(value)
        return None if index is None else self.nodes[index]

    def dependents(self, values: Iterable[str]) -> set[str]:
        """Return the given values and all values computed from them, ignoring values that use only their sizes."""
        reached = set(values)
        for node in self.nodes:
            if node.op_type not in _SHAPE_OPERATORS and not reached.isdisjoint(taken_by(node)):
                reached.update(name for name in node.output if name)
        return reached

    def ancestors(self, value: str) -> set[int]:
        """Return the indices of the nodes from which a value is computed."""
        return upstream_nodes(self.nodes, [value])


def observe(source: SourceFile, images: Callable[[int], Array], output: str) -> ObservedGraph:
    """Run a file on batches of two and three images, and fold the values that do not depend on the images.

    Args:
        source: the file; its model is modified.
        images: function from a number of images to a batch for the input.
        output: value to keep, with all values that it is computed from.

    Raises:
        ExportError: the file cannot be run, or accepts only a fixed number of images.
    """
    graph = source.model.graph
    _keep(graph, [output])
    data = _depending_on_pixels(graph, source.input)
    runs = _observations(source, images, output)
    if _inline_branches(graph, runs[0], data):
        data = _depending_on_pixels(graph, source.input)
        runs = [_run(source, images(size)) for size in _SIZES]
    constant = {name for name in runs[0] if name not in data and _same(runs[0][name], runs[1][name])}
    varying = runs[0].keys() - constant
    extents = {name: extent for name in varying if (extent := common_extent(runs[0][name], runs[1][name])) is not None}
    extents[source.input] = Extent((1, *images(1).shape[1:]), 0)
    _fold(graph, constant, runs[0], extents)
    _keep(graph, [output])
    use_image_count(graph, source.input, extents)
    if separate_rows(graph, extents):
        return observe(source, images, output)
    if output not in runs[0]:
        raise ExportError(f"{source.path}: {shown(output)} does not depend on the images: name the logits with --logits")
    return ObservedGraph(source.model, source.input, extents, runs[0][output], images)


def _observations(source: SourceFile, images: Callable[[int], Array], output: str) -> list[dict[str, Array]]:
    """Run a file on batches of two and three images. A file for a fixed number of images is changed to take any number.

    Raises:
        ExportError: see `observe`.
    """
    fixed = source.shape[0] or 1
    _free_batch(source)
    try:
        runs = [_run(source, images(size)) for size in _SIZES]
        if fixed == 1 or common_extent(runs[0][output], runs[1][output]) is not None:
            return runs
        problem = f"{shown(output)} does not follow the number of images"
    except _RunError as error:
        problem = str(error)
    try:
        observed = _run(source, images(fixed))
    except _RunError as error:
        raise ExportError(f"{source.path}: cannot be run on its input: {first_line(error)}; {problem}") from error
    try:
        return _run_freed(source, images, observed, fixed)
    except _RunError as error:
        number = "one image" if fixed == 1 else f"{fixed} images"
        raise ExportError(
            f"{source.path}: takes {number} at a time ({first_line(error)}): export it again with a dynamic batch size"
        ) from error


class _RunError(Exception):
    pass


def _run_freed(source: SourceFile, images: Callable[[int], Array], observed: dict[str, Array], fixed: int) -> list[dict[str, Array]]:
    """Let a graph for a fixed number of images take any number, and run it.

    Raises:
        _RunError: it still takes a fixed number.
    """
    try:
        free_batch(source.model, source.input, fixed, observed, images)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise _RunError(_plain(error)) from error
    return [_run(source, images(size)) for size in _SIZES]


def _run(source: SourceFile, batch: Array) -> dict[str, Array]:
    """Run the model and return all values of its main graph."""
    import onnxruntime

    model = ModelProto()
    model.CopyFrom(source.model)
    del model.graph.output[:]
    names = [name for node in model.graph.node for name in node.output if name]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = session.run(names, {source.input: batch})
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise _RunError(_plain(error)) from error
    return {name: value for name, value in zip(names, values, strict=True) if isinstance(value, np.ndarray)}


def _plain(error: Exception) -> str:
    """Return ONNX Runtime's message without its error code."""
    return first_line(error).rpartition(" : ")[2] if " : " in first_line(error) else first_line(error)


def _keep(graph: GraphProto, outputs: Sequence[str]) -> None:
    """Remove the nodes and weights that no output in `outputs` needs, and make these the outputs."""
    nodes = list(graph.node)
    kept = [nodes[index] for index in sorted(upstream_nodes(nodes, outputs))]
    used = {name for node in kept for name in taken_by(node)} | {*outputs}
    replace_nodes(graph, kept)
    weights = [copied(weight) for weight in graph.initializer if weight.name in used]
    del graph.initializer[:], graph.output[:]
    graph.initializer.extend(weights)
    graph.output.extend(helper.make_empty_tensor_value_info(name) for name in outputs)


def _free_batch(source: SourceFile) -> None:
    dims = source.model.graph.input[0].type.tensor_type.shape.dim
    dims[0].Clear()
    dims[0].dim_param = "N"


def _depending_on_pixels(graph: GraphProto, source_input: str) -> set[str]:
    reached = {source_input}
    for node in graph.node:
        if node.op_type not in _SHAPE_OPERATORS and not reached.isdisjoint(taken_by(node)):
            reached.update(name for name in node.output if name)
    return reached


def _inline_branches(graph: GraphProto, observed: dict[str, Array], data: set[str]) -> bool:
    """Replace each `If` whose condition does not depend on the pixels with the branch taken. Return True if any was replaced."""
    weights = {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}
    nodes: list[NodeProto] = []
    inlined = False
    for node in graph.node:
        condition = observed.get(node.input[0], weights.get(node.input[0])) if node.op_type == "If" else None
        if condition is None or node.input[0] in data:
            nodes.append(node)
            continue
        inlined = True
        taken = "then_branch" if bool(condition.ravel()[0]) else "else_branch"
        branch = next(attribute.g for attribute in node.attribute if attribute.name == taken)
        graph.initializer.extend(branch.initializer)
        for inner in branch.node:
            if inner.op_type == "Constant":
                graph.initializer.append(numpy_helper.from_array(constant_value(inner), inner.output[0]))
            else:
                nodes.append(copied(inner))
        returned = zip(branch.output, node.output, strict=True)
        nodes.extend(helper.make_node("Identity", [inner.name], [name], name=f"{name}/returned") for inner, name in returned)
    replace_nodes(graph, nodes)
    return inlined


def _keeps_order(node: NodeProto, values: dict[str, Array]) -> bool:
    """Return True for a selection of all elements of a flat value in their order, as PyTorch's exporter writes a strided view."""
    if node.op_type != "Gather" or node.input[0] not in values or node.input[1] not in values:
        return False
    source, indices = values[node.input[0]], values[node.input[1]]
    return source.ndim == 1 and source.size == indices.size and np.array_equal(indices.ravel(), np.arange(source.size))


def _same(first: Array, second: Array) -> bool:
    return np.array_equal(first, second, equal_nan=first.dtype.kind == "f")


def _fold(graph: GraphProto, constant: set[str], values: dict[str, Array], extents: dict[str, Extent]) -> None:
    """Replace constant values by initializers, and the shapes of reshapes by constants."""
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.output and all(name in constant or not name for name in node.output):
            graph.initializer.extend(numpy_helper.from_array(values[name], name) for name in node.output if name)
            continue
        if (node.op_type == "Reshape" or _keeps_order(node, values)) and node.output[0] in extents:
            extent = extents[node.output[0]]
            shape = [-1 if axis == extent.batch else size for axis, size in enumerate(extent.dims)]
            if 0 not in shape and node.input[1] != f"{node.output[0]}/static_shape":
                name = add_constant(graph, f"{node.output[0]}/static_shape", np.array(shape, dtype=np.int64))
                node = helper.make_node("Reshape", [node.input[0], name], list(node.output), name=node.name)
        if node.op_type == "Expand" and _keeps_batch(node, extents) and node.input[1] != f"{node.output[0]}/static_shape":
            extent = extents[node.output[0]]
            shape = [1 if axis == extent.batch else size for axis, size in enumerate(extent.dims)]
            name = add_constant(graph, f"{node.output[0]}/static_shape", np.array(shape, dtype=np.int64))
            node = helper.make_node("Expand", [node.input[0], name], list(node.output), name=node.name)
        nodes.append(node)
    replace_nodes(graph, nodes)


def _keeps_batch(node: NodeProto, extents: dict[str, Extent]) -> bool:
    """Return True for a broadcast along other axes than that of the batch."""
    source, result = extents.get(node.input[0]), extents.get(node.output[0])
    if source is None or result is None:
        return False
    return source.batch + result.rank - source.rank == result.batch and source.dims[source.batch] == result.dims[result.batch]
