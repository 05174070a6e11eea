"""Graph for one image at a time, made to take any number of images.

Exporters write the batch size 1 into reshapes, and class tokens for one image into concatenations. The nodes are run one by one on two and
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


def free_batch(model: ModelProto, source_input: str, alone: dict[str, Array], images: Callable[[int], Array]) -> None:
    """Change reshapes and concatenations that fix the batch size 1, in place.

    Args:
        model: the model.
        source_input: name of its input.
        alone: values of the model for one image.
        images: function from a number of images to a batch for the input.
    """
    freed = _Freed(model, source_input, alone, (images(2), images(3)))
    for node in list(model.graph.node):
        freed.add(node)
    replace_nodes(model.graph, freed.nodes)


class _Freed:
    """Nodes of the new graph, in the order in which they were run.

    nodes: these nodes.
    """

    def __init__(self, model: ModelProto, source_input: str, alone: dict[str, Array], images: Pair) -> None:
        self.nodes: list[NodeProto] = []
        self._model, self._alone = model, alone
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
            self._constants |= {name: self._alone[name] for name in node.output if name in self._alone}
            self.nodes.append(node)
            return
        if node.op_type == "Reshape" and node.input[0] in self._values and self._is_fixed(node.input[1]):
            node = self._any_reshape(node)
        elif node.op_type == "Concat":
            node = self._any_concat(node)
        self.nodes.append(node)
        self._run(node)
        positions = next((self._joint[name] for name in node.input if name in self._joint), None)
        if positions is not None and node.op_type != "Reshape":
            self._joint[node.output[0]] = positions

    def _run(self, node: NodeProto) -> None:
        self._values |= dict(zip((name for name in node.output if name), _results(self._model, node, self._known(node)), strict=True))

    def _known(self, node: NodeProto) -> dict[str, Pair]:
        """Return the inputs of a node."""
        return {name: self._values[name] if name in self._values else (self._constants[name],) * 2 for name in node.input if name}

    def _is_fixed(self, shape: str) -> bool:
        return shape not in self._values or np.array_equal(*self._values[shape])

    def _extent(self, name: str) -> Extent | None:
        return common_extent(*self._values[name])

    def _any_reshape(self, node: NodeProto) -> NodeProto:
        extent, shape = self._extent(node.input[0]), list(self._alone[node.output[0]].shape)
        if extent is None or 0 in shape:
            return node
        before = self._joint.get(node.input[0], extent.before)
        axis = next((axis for axis in range(len(shape)) if math.prod(shape[:axis]) == before), None)
        if before == shape[0] > 1 and len(shape) == 2 and self._takers.get(node.output[0]) == {"Gemm"}:
            self._joint[node.output[0]], axis = before, 0
        if axis is None:
            return node
        shape[axis] = -1
        name = add_constant(self._model.graph, f"{node.output[0]}/shape_of_any_batch", np.array(shape, dtype=np.int64))
        self._constants[name] = np.array(shape, dtype=np.int64)
        return helper.make_node("Reshape", [node.input[0], name], list(node.output), name=node.name)

    def _any_concat(self, node: NodeProto) -> NodeProto:
        """Repeat constants, such as a class token, for each image."""
        known = next(name for name in node.input if name in self._values)
        extent = self._extent(known)
        constants = [name for name in dict.fromkeys(node.input) if name not in self._values]
        if extent is None or not constants:
            return node
        node = copied(node)
        prefix = f"{node.output[0]}/per_image"
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


def _results(model: ModelProto, node: NodeProto, inputs: dict[str, Pair]) -> list[Pair]:
    """Run one node for two and for three images. Return its outputs."""
    import onnxruntime

    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(pair[0].dtype), [None] * pair[0].ndim)
        for name, pair in inputs.items()
    ]
    names = [name for name in node.output if name]
    graph = helper.make_graph([node], "node", values, [helper.make_empty_tensor_value_info(name) for name in names])
    single = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(single.SerializeToString(), options, providers=["CPUExecutionProvider"])
    two, three = (session.run(names, {name: pair[number] for name, pair in inputs.items()}) for number in (0, 1))
    return list(zip(two, three, strict=True))
