"""Upgrade of a graph from opset 7 or newer to opset 20, for operators whose attributes became inputs or whose defaults changed.

Only operators that changed their form are rewritten. A change of meaning that this module does not handle is detected by the export's
check, which compares the logits with those of the original file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from tlcli.exports.rewrite.graph_edit import add_constant, replace_nodes, subgraphs

OLDEST_OPSET = 7

_REDUCTIONS = frozenset(f"Reduce{name}" for name in ("Max", "Mean", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare"))


def upgrade(model: ModelProto, version: int, target: int) -> None:
    """Rewrite the standard operators of a model for a newer opset, in place.

    Args:
        model: model without `Constant` operators in its main graph.
        version: its opset, 7 or newer.
        target: new opset, 18 to 20.

    Raises:
        NotImplementedError: an operator's old form has no newer form.
    """
    _upgrade_graph(model.graph, model.graph, version)
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = target


def _upgrade_graph(graph: GraphProto, weights: GraphProto, version: int) -> None:
    nodes: list[NodeProto] = []
    for node in graph.node:
        for inner in subgraphs(node):
            _upgrade_graph(inner, weights, version)
        change = _CHANGES.get(node.op_type)
        if node.domain in ("", "ai.onnx") and change is not None:
            nodes.extend(change(_Old(node, weights, version)))
        else:
            nodes.append(node)
    replace_nodes(graph, nodes)


class _Old:
    """Node of an old opset, with its attributes."""

    def __init__(self, node: NodeProto, weights: GraphProto, version: int) -> None:
        self.node = node
        self.version = version
        self.attributes: dict[str, Any] = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        self._weights = weights

    def constant(self, name: str, value: Sequence[Any] | float, dtype: type[np.generic]) -> str:
        return add_constant(self._weights, f"{self.node.output[0]}/{name}", np.array(value, dtype=dtype))

    def renewed(self, inputs: Sequence[str] | None = None, without: Sequence[str] = (), operator: str | None = None) -> list[NodeProto]:
        """Return the node with other inputs, and without some of its attributes."""
        kept = {name: value for name, value in self.attributes.items() if name not in without}
        inputs = list(self.node.input) if inputs is None else list(inputs)
        operator = operator or self.node.op_type
        return [helper.make_node(operator, inputs, list(self.node.output), name=self.node.name, domain="", **kept)]

    def with_input(self, attribute: str, since: int) -> list[NodeProto]:
        """Return the node with an int64 attribute as its second input, as of opset `since`."""
        if self.version >= since or attribute not in self.attributes:
            return [self.node]
        values = self.constant(attribute, np.atleast_1d(self.attributes[attribute]).tolist(), np.int64)
        return self.renewed([self.node.input[0], values], [attribute])


def _split(old: _Old) -> list[NodeProto]:
    (node,) = old.with_input("split", 13)
    if old.version < 18 and len(node.input) < 2:
        node.attribute.append(helper.make_attribute("num_outputs", len(node.output)))
    return [node]


def _slice(old: _Old) -> list[NodeProto]:
    if old.version >= 10:
        return [old.node]
    starts, ends = old.attributes["starts"], old.attributes["ends"]
    axes = old.attributes.get("axes", range(len(starts)))
    bounds = (old.constant(name, list(value), np.int64) for name, value in (("starts", starts), ("ends", ends), ("axes", axes)))
    return old.renewed([old.node.input[0], *bounds], ["starts", "ends", "axes"])


def _clip(old: _Old) -> list[NodeProto]:
    if old.version >= 11:
        return [old.node]
    bounds = [old.constant(name, old.attributes[name], np.float32) if name in old.attributes else "" for name in ("min", "max")]
    return old.renewed([old.node.input[0], *bounds], ["min", "max"])


def _pad(old: _Old) -> list[NodeProto]:
    if old.version >= 11:
        return [old.node]
    inputs = [
        old.node.input[0],
        old.constant("pads", old.attributes["pads"], np.int64),
        old.constant("value", old.attributes.get("value", 0.0), np.float32),
    ]
    return old.renewed(inputs, ["pads", "value"])


def _top_k(old: _Old) -> list[NodeProto]:
    return [old.node] if old.version >= 10 else old.with_input("k", 10)


def _dropout(old: _Old) -> list[NodeProto]:
    return [old.node] if old.version >= 12 else old.renewed(old.node.input[:1], ["ratio"])


def _batch_normalization(old: _Old) -> list[NodeProto]:
    if old.version >= 14:
        return [old.node]
    if old.attributes.get("spatial", 1) == 0:
        raise NotImplementedError("BatchNormalization with spatial=0 has no newer form")
    (node,) = old.renewed(without=["spatial"])
    del node.output[1:]
    return [node]


def _softmax(old: _Old) -> list[NodeProto]:
    """Rewrite a softmax over all axes from `axis` on, the meaning before opset 13, as a softmax over the last axis."""
    if old.version >= 13:
        return [old.node]
    axis = old.attributes.get("axis", 1)
    node, (output,) = old.node, old.node.output
    flat, result = f"{output}/flat", f"{output}/result"
    if axis == -1:
        return [node]
    return [
        helper.make_node("Flatten", [node.input[0]], [flat], name=flat, axis=axis),
        helper.make_node(node.op_type, [flat], [result], name=node.name, axis=-1),
        helper.make_node("Shape", [node.input[0]], [f"{output}/shape"], name=f"{output}/shape"),
        helper.make_node("Reshape", [result, f"{output}/shape"], [output], name=f"{output}/restored"),
    ]


def _resize(old: _Old) -> list[NodeProto]:
    if old.version >= 11:
        return [old.node]
    scales = (
        old.node.input[1]
        if len(old.node.input) > 1
        else add_constant(
            old._weights,
            f"{old.node.output[0]}/scales",
            np.array(old.attributes["scales"], dtype=np.float32),
        )
    )
    (node,) = old.renewed([old.node.input[0], "", scales], ["scales"], operator="Resize")
    node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
    node.attribute.append(helper.make_attribute("nearest_mode", "floor"))
    return [node]


def _cast(old: _Old) -> list[NodeProto]:
    if old.attributes.get("to") == TensorProto.STRING:
        raise NotImplementedError("a Cast to strings is not supported")
    return [old.node]


_CHANGES: dict[str, Callable[[_Old], list[NodeProto]]] = {
    "Squeeze": lambda old: old.with_input("axes", 13),
    "Unsqueeze": lambda old: old.with_input("axes", 13),
    "ReduceSum": lambda old: old.with_input("axes", 13),
    **{name: lambda old: old.with_input("axes", 18) for name in _REDUCTIONS},
    "Split": _split,
    "Slice": _slice,
    "Clip": _clip,
    "Pad": _pad,
    "TopK": _top_k,
    "Dropout": _dropout,
    "BatchNormalization": _batch_normalization,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Upsample": _resize,
    "Resize": _resize,
    "Cast": _cast,
}
