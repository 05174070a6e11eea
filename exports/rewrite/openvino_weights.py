"""Workaround for an OpenVINO bug with square weights that both the forward and the backward pass multiply with.

OpenVINO caches packed weights by their size and the address of the original. It cannot distinguish the two uses of a square weight, and
computes one pass with the weight packed for the other, so maps or scores are silently wrong. Therefore the backward pass takes such a
weight as a separate value, the result of an identity operation that runtimes evaluate once at load time. With ONNX Runtime on a CPU, this
takes no additional memory: it packs the weight for the forward pass, and keeps either the original or the copy for the backward pass.
A large matrix, which is stored once (`shared_weights`), is instead split into two halves, because OpenVINO does not pack the weights of a
sum of two products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper

from tlcli.exports.rewrite.graph_edit import add_constant, replace_nodes, subgraphs, take_instead, with_inner
from tlcli.exports.rewrite.shared_weights import LEAST_BYTES

_PLACE = "parted_weights"


def separate_square_weights(graph: GraphProto) -> None:
    """Give the backward pass separate values for the square weights that it shares with the forward pass, in place."""
    square = {weight.name: weight for weight in graph.initializer if len(weight.dims) > 1 and weight.dims[0] == weight.dims[1]}
    nodes = list(with_inner(graph.node))
    forward, backward = ({node.input[1] for node in nodes if _is_backward(node) is order} for order in (False, True))
    in_both = sorted(square.keys() & forward & backward)
    if not in_both:
        return
    lowest = add_constant(graph, f"{_PLACE}/lowest", np.array(-np.inf, dtype=np.float32))
    first: list[NodeProto] = []
    for name in in_both:
        weight = square[name]
        if len(weight.dims) == 2 and 4 * math.prod(weight.dims) >= LEAST_BYTES and weight.dims[0] % 2 == 0:
            _halve_products(graph, weight)
        else:
            same = f"{name}/same"
            first.append(helper.make_node("Max", [name, lowest], [same], name=same))
            for node in with_inner(graph.node):
                if _is_backward(node):
                    take_instead(node, name, same)
    replace_nodes(graph, [*first, *graph.node])


def _is_backward(node: NodeProto) -> bool | None:
    """Return True if a node multiplies by its second input as in the backward pass, False if as in the forward pass, None otherwise."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return node.op_type == "ConvTranspose"
    if node.op_type == "Gemm":
        return not any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return True if node.op_type == "MatMul" else None


def _halve_products(graph: GraphProto, weight: TensorProto) -> None:
    """Rewrite each product `x W` as the sum of two products, each of half the columns of x and half the rows of W."""
    size = weight.dims[0]
    columns = add_constant(graph, f"{weight.name}/columns", [-1, 2, size // 2])
    rows = add_constant(graph, f"{weight.name}/rows", [2, size // 2, size])
    axis = add_constant(graph, f"{weight.name}/axis", [0])

    def halved(node: NodeProto) -> Sequence[NodeProto]:
        if node.op_type != "MatMul" or node.input[1] != weight.name:
            for inner in subgraphs(node):
                replace_nodes(inner, [new for inside in inner.node for new in halved(inside)])
            return [node]
        x, (product,) = node.input[0], node.output
        blocks, turned, halves, products = (f"{product}/{step}" for step in ("columns", "turned", "halves", "products"))
        return [
            helper.make_node("Reshape", [x, columns], [blocks], name=blocks),
            helper.make_node("Transpose", [blocks], [turned], name=turned, perm=[1, 0, 2]),
            helper.make_node("Reshape", [weight.name, rows], [halves], name=halves),
            helper.make_node("MatMul", [turned, halves], [products], name=products),
            helper.make_node("ReduceSum", [products, axis], [product], name=product, keepdims=0),
        ]

    replace_nodes(graph, [new for node in graph.node for new in halved(node)])
