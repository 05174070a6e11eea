"""Graph for a fixed number of images, made to take any number of images.

Exporters write the batch size into reshapes, and class tokens of all images into concatenations. The nodes are run one by one on two and
on three images, so the axis of the batch is known where such a node comes, and the node can be changed before it is run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper, numpy_helper

from tlcli.exports.onnx_source.graph.extents import Extent, common_extent
from tlcli.exports.rewrite.graph_edit import add_constant, copied, replace_nodes, take_instead

Array = npt.NDArray[Any]
Pair = tuple[Array, Array]
"""A value for two and for three images."""
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Where", "Pow", "Max", "Min", "Greater", "Less", "Equal"})


def free_batch(model: ModelProto, source_input: str, fixed: int, observed: dict[str, Array], images: Callable[[int], Array]) -> None:
    """Change the operators that fix the batch size, in place.

    Args:
        model: the model.
        source_input: name of its input.
        fixed: number of images that it takes.
        observed: values of the model for this number of images.
        images: function from a number of images to a batch for the input.
    """
    freed = _Freed(model, source_input, fixed, observed, (images(2), images(3)))
    for node in list(model.graph.node):
        freed.add(node)
    replace_nodes(model.graph, freed.nodes)


class _Freed:
    """Nodes of the new graph, in the order in which they were run.

    nodes: these nodes.
    """

    def __init__(self, model: ModelProto, source_input: str, fixed: int, observed: dict[str, Array], images: Pair) -> None:
        self.nodes: list[NodeProto] = []
        self._model, self._fixed, self._observed = model, fixed, observed
        self._constants = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
        self._values: dict[str, Pair] = {source_input: images}
        self._joint: dict[str, int] = {}
        """Values whose first axis holds the positions of all images, positions first, with the number of positions."""
        self._takers: dict[str, set[str]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._takers.setdefault(name, set()).add(node.op_type)

    def add(self, node: NodeProto) -> None:
        """Change a node if it fixes the batch, and run it."""
        if self._values.keys().isdisjoint(node.input):
            self._constants |= {name: self._observed[name] for name in node.output if name in self._observed}
            self.nodes.append(node)
            return
        if node.op_type == "Reshape" and node.input[0] in self._values and self._is_fixed(node.input[1]):
            node = self._any_reshape(node)
        elif node.op_type == "Expand" and node.input[0] in self._values and self._is_fixed(node.input[1]):
            node = self._any_expand(node)
        elif node.op_type == "Resize" and node.input[0] in self._values:
            node = self._any_resize(node)
        elif node.op_type == "Concat":
            node = self._any_concat(node)
        elif node.op_type in _RECURRENT:
            node = self._from_zero(node)
        elif node.op_type in _ELEMENTWISE:
            node = self._with_single_rows(node)
        self.nodes.append(node)
        self._run(node)
        positions = next((self._joint[name] for name in node.input if name in self._joint), None)
        if positions is not None and node.op_type != "Reshape":
            self._joint[node.output[0]] = positions

    def _run(self, node: NodeProto) -> None:
        values = {name: self._values[name] for name in node.input if name in self._values}
        constants = {name: self._constants[name] for name in node.input if name and name not in self._values}
        results = _results(self._model, node, values, constants)
        self._values |= dict(zip((name for name in node.output if name), results, strict=True))

    def _is_fixed(self, shape: str) -> bool:
        return shape not in self._values or np.array_equal(*self._values[shape])

    def _extent(self, name: str) -> Extent | None:
        return common_extent(*self._values[name])

    def _any_reshape(self, node: NodeProto) -> NodeProto:
        extent, shape = self._extent(node.input[0]), list(self._observed[node.output[0]].shape)
        if extent is None or 0 in shape:
            return node
        before = self._joint.get(node.input[0], extent.before)
        fitting = (axis for axis in range(len(shape)) if math.prod(shape[:axis]) == before and shape[axis] % self._fixed == 0)
        axis = next(fitting, None)
        if before * self._fixed == shape[0] > self._fixed and len(shape) == 2 and self._takers.get(node.output[0]) == {"Gemm"}:
            self._joint[node.output[0]], axis = before, 0
        if axis is None:
            return node
        shape[axis] = -1
        name = self._constant(f"{node.output[0]}/shape_of_any_batch", shape)
        return helper.make_node("Reshape", [node.input[0], name], list(node.output), name=node.name)

    def _any_expand(self, node: NodeProto) -> NodeProto:
        """Leave the batch as it is, and broadcast along the other axes."""
        extent, shape = self._extent(node.input[0]), list(self._observed[node.output[0]].shape)
        if extent is None:
            return node
        axis = extent.batch + len(shape) - extent.rank
        if shape[axis] != self._fixed * extent.dims[extent.batch]:
            return node
        shape[axis] = 1
        name = self._constant(f"{node.output[0]}/shape_of_any_batch", shape)
        return helper.make_node("Expand", [node.input[0], name], list(node.output), name=node.name)

    def _any_resize(self, node: NodeProto) -> NodeProto:
        """Give sizes for the axes behind the first two only."""
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        sizes = list(self._observed[node.output[0]].shape)
        extent = self._extent(node.input[0])
        by_sizes = len(node.input) > 3 and bool(node.input[3]) and self._is_fixed(node.input[3])
        if not by_sizes or "axes" in attributes or extent is None or extent.batch > 1 or extent.dims[:2] != (1, sizes[1]):
            return node
        name = self._constant(f"{node.output[0]}/sizes_of_any_batch", sizes[2:])
        inputs = [node.input[0], "", "", name]
        return helper.make_node("Resize", inputs, list(node.output), name=node.name, axes=[*range(2, len(sizes))], **attributes)

    def _from_zero(self, node: NodeProto) -> NodeProto:
        """Leave out initial states of zeros, which are the default, for any number of images."""
        node = copied(node)
        for index in (5, 6):
            state = self._constants.get(node.input[index]) if index < len(node.input) else None
            if state is not None and not state.any():
                node.input[index] = ""
        return node

    def _with_single_rows(self, node: NodeProto) -> NodeProto:
        """Shorten constants that hold the same rows for each image to the rows of one image."""
        extents = [self._extent(name) for name in node.input if name in self._values]
        known = [extent for extent in extents if extent is not None]
        if self._fixed == 1 or not known:
            return node
        extent = max(known, key=lambda value: value.rank)
        node = copied(node)
        for name in dict.fromkeys(node.input):
            rows = self._rows_of_one(self._constants.get(name), extent)
            if rows is not None:
                take_instead(node, name, self._constant(f"{node.output[0]}/rows of {name}", rows))
        return node

    def _rows_of_one(self, value: Array | None, extent: Extent) -> Array | None:
        """Return the rows of one image of a constant; None if it has no rows for each image, or different ones."""
        axis = -1 if value is None else extent.batch - extent.rank + value.ndim
        rows = extent.dims[extent.batch]
        if value is None or axis < 0 or value.shape[axis] != self._fixed * rows:
            return None
        parts = np.split(value, self._fixed, axis)
        return parts[0] if all(np.array_equal(part, parts[0]) for part in parts) else None

    def _constant(self, name: str, value: Array | list[int]) -> str:
        array = np.array(value)
        self._constants[add_constant(self._model.graph, name, array)] = array
        return name

    def _any_concat(self, node: NodeProto) -> NodeProto:
        """Repeat constants, such as a class token, for each image."""
        known = next(name for name in node.input if name in self._values)
        extent = self._extent(known)
        constants = [name for name in dict.fromkeys(node.input) if name not in self._values]
        if extent is None or not constants:
            return node
        node = copied(node)
        prefix = f"{node.output[0]}/per_image"
        for number, name in enumerate(constants):
            rows = self._rows_of_one(self._constants[name], extent) if self._fixed > 1 else None
            if rows is not None:
                constants[number] = self._constant(f"{prefix}/rows of {name}", rows)
                take_instead(node, name, constants[number])
        axis, rank = extent.batch, extent.rank
        names = {
            "rows": np.array([extent.dims[axis]]),
            "before": np.ones(axis, dtype=np.int64),
            "after": np.ones(rank - 1 - axis, dtype=np.int64),
        }
        for name, value in names.items():
            self._constants[add_constant(self._model.graph, f"{prefix}/{name}", value)] = value
        self._insert("Shape", [known], f"{prefix}/size", start=axis, end=axis + 1)
        self._insert("Div", [f"{prefix}/size", f"{prefix}/rows"], f"{prefix}/images")
        self._insert("Concat", [f"{prefix}/before", f"{prefix}/images", f"{prefix}/after"], f"{prefix}/repeats", axis=0)
        for number, name in enumerate(constants):
            self._insert("Tile", [name, f"{prefix}/repeats"], f"{prefix}/{number}")
            take_instead(node, name, f"{prefix}/{number}")
        return node

    def _insert(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
        node = helper.make_node(operator, inputs, [output], name=output, **attributes)
        self.nodes.append(node)
        self._run(node)


def _results(model: ModelProto, node: NodeProto, inputs: dict[str, Pair], constants: dict[str, Array]) -> list[Pair]:
    """Run one node for two and for three images. Return its outputs."""
    import onnxruntime

    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(pair[0].dtype), [None] * pair[0].ndim)
        for name, pair in inputs.items()
    ]
    names = [name for name in node.output if name]
    outputs = [helper.make_empty_tensor_value_info(name) for name in names]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([node], "node", values, outputs, weights)
    single = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(single.SerializeToString(), options, providers=["CPUExecutionProvider"])
    two, three = (session.run(names, {name: pair[number] for name, pair in inputs.items()}) for number in (0, 1))
    return list(zip(two, three, strict=True))
