"""Conversion of the forward pass to float16 for GPUs, from the normalised images to the last layer's input.

Operators that need more range or precision than float16 has stay in float32: the normalisation, the mean over the positions, the last
layer, the softmax, and everything from which maps are computed. The graph therefore has a cast at the beginning of the float16 section, one
at its end, and one for each value in between that maps use; only requests for maps pay for the latter.

ONNX Runtime performs the conversion (`onnxruntime.transformers.float16`). It handles subgraphs, but not the values that they capture, so
only the forward pass is passed to it.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from tlcli.contract.model.description import IMAGES, LOGITS
from tlcli.exports.precision.fold_batch_norm import Folded, fold_batch_norms
from tlcli.exports.precision.forward_subgraph import needed_outside, put_back, take_out
from tlcli.exports.rewrite.graph_edit import add_constant, producers, take_instead

_NORMALISING = ("Transpose", "Cast", "Sub", "Div", "Mul", "Add")
_POOLING = ("ReduceMean", "GlobalAveragePool", "Reshape", "Flatten", "Squeeze", "Identity")
_LAYERS = ("Gemm", "MatMul", "Conv")
_SMALL = 1024
"""Size in values below which a constant that is needed in both types is stored in both."""


def convert_to_fp16(flat: ModelProto) -> None:
    """Convert the forward pass of a flat graph to float16, in place."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    start, end = _normalised(flat.graph), _pooled(flat.graph)
    part = take_out(flat, [end], [start])
    folded = fold_batch_norms(part.graph)
    part = convert_float_to_float16(part, keep_io_types=True)
    weights = _weights_for_maps(part.graph, folded, needed_outside(flat.graph, [end], [start]))
    put_back(flat, [end], part, weights, [start])


def _normalised(graph: GraphProto) -> str:
    """Return the name of the value that holds the normalised images, the input of the network itself."""
    weights = {weight.name for weight in graph.initializer}
    value = IMAGES
    while True:
        users = [node for node in graph.node if value in node.input and node.op_type != "Shape"]
        if len(users) != 1 or users[0].op_type not in _NORMALISING or not {*users[0].input} <= weights | {value}:
            return value
        (value,) = users[0].output


def _pooled(graph: GraphProto) -> str:
    """Return the name of the value that is pooled or flattened to the last layer's input. Without pooling, return that input's name."""
    weights = {weight.name for weight in graph.initializer}
    maker = producers(graph.node)
    value, layers = LOGITS, 0
    while True:
        node = graph.node[maker[value]]
        inputs = [name for name in node.input if name not in weights]
        if len(inputs) != 1 or not (node.op_type in _POOLING or (layers == 0 and node.op_type in (*_LAYERS, "Add"))):
            return value
        layers += node.op_type in _LAYERS
        (value,) = inputs


def _weights_for_maps(graph: GraphProto, folded: dict[str, Folded], needed: set[str]) -> list[NodeProto]:
    """Return nodes that convert to float32 the weights that maps also use. Small weights need no node: they are stored in both types."""
    nodes: list[NodeProto] = []
    halves = [weight for weight in graph.initializer if weight.data_type == TensorProto.FLOAT16]
    for weight in halves:
        origin = folded.get(weight.name)
        name = origin.weight if origin else weight.name
        if name not in needed:
            continue
        half = weight.name
        if origin is None:
            half = f"{name}/half"
            for node in graph.node:
                take_instead(node, name, half)
            weight.name = half
        if math.prod(weight.dims) < _SMALL:
            continue
        wide = name if origin is None else f"{half}/wide"
        nodes.append(helper.make_node("Cast", [half], [wide], name=f"{name}/wide", to=TensorProto.FLOAT))
        if origin is not None:
            shape = (-1, *[1] * (len(weight.dims) - 1))
            factors = 1 / np.where(origin.factors == 0, 1, origin.factors).reshape(shape)
            back = add_constant(graph, f"{half}/back", factors.astype(np.float32))
            nodes.append(helper.make_node("Mul", [wide, back], [name], name=f"{name}/unfolded"))
    return nodes
