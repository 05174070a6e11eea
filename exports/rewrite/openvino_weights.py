"""Square weights that the forward and the backward pass both take, each in its own order, told apart for OpenVINO.

OpenVINO keeps packed weights by their sizes and where the original lies. A square one is the same to it in both passes, and one of the
two is computed with what was packed for the other: of a wrong map, or of wrong scores, nothing tells. So the backward pass gets such a
weight as another value: by way of an operator that changes nothing, which runtimes compute once, when they load. That takes no more
memory of ONNX Runtime on a CPU, which packs the weight for the forward pass and keeps the original for the backward pass, or this.
A large matrix, which is kept once (`shared_weights`), is halved instead: the sum of two products is a product OpenVINO does not pack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper

from tlcli.exports.rewrite.graph_edit import add_constant, replace_nodes, subgraphs, take_instead, with_inner
from tlcli.exports.rewrite.shared_weights import LEAST_BYTES

_PLACE = "parted_weights"


def part_square_weights(graph: GraphProto) -> None:
    """Let the backward pass take square weights as values of their own; rewritten in place."""
    square = {weight.name: weight for weight in graph.initializer if len(weight.dims) > 1 and weight.dims[0] == weight.dims[1]}
    nodes = list(with_inner(graph.node))
    forwards, backwards = ({node.input[1] for node in nodes if _order(node) is backward} for backward in (False, True))
    taken_by_both = sorted(square.keys() & forwards & backwards)
    if not taken_by_both:
        return
    lowest = add_constant(graph, f"{_PLACE}/lowest", np.array(-np.inf, dtype=np.float32))
    first: list[NodeProto] = []
    for name in taken_by_both:
        weight = square[name]
        if len(weight.dims) == 2 and 4 * math.prod(weight.dims) >= LEAST_BYTES and weight.dims[0] % 2 == 0:
            _halve_products(graph, weight)
        else:
            same = f"{name}/same"
            first.append(helper.make_node("Max", [name, lowest], [same], name=same))
            for node in with_inner(graph.node):
                if _order(node):
                    take_instead(node, name, same)
    replace_nodes(graph, [*first, *graph.node])


def _order(node: NodeProto) -> bool | None:
    """Whether a node multiplies with its second input as the backward pass does, None if it does not multiply."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return node.op_type == "ConvTranspose"
    if node.op_type == "Gemm":
        return not any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return True if node.op_type == "MatMul" else None


def _halve_products(graph: GraphProto, weight: TensorProto) -> None:
    """`x W` as the sum of two products, of half the columns of x and half the rows of W each."""
    size = weight.dims[0]
    columns = add_constant(graph, f"{weight.name}/columns", [-1, 2, size // 2])
    rows = add_constant(graph, f"{weight.name}/rows", [2, size // 2, size])
    axis = add_constant(graph, f"{weight.name}/axis", [0])

    def halved(node: NodeProto) -> Sequence[NodeProto]:
        if node.op_type != "MatMul" or node.input[1] != weight.name:
            for inner in subgraphs(node):
                replace_nodes(inner, [part for inside in inner.node for part in halved(inside)])
            return [node]
        x, (product,) = node.input[0], node.output
        parts, turned, halves, products = (f"{product}/{step}" for step in ("columns", "turned", "halves", "products"))
        return [
            helper.make_node("Reshape", [x, columns], [parts], name=parts),
            helper.make_node("Transpose", [parts], [turned], name=turned, perm=[1, 0, 2]),
            helper.make_node("Reshape", [weight.name, rows], [halves], name=halves),
            helper.make_node("MatMul", [turned, halves], [products], name=products),
            helper.make_node("ReduceSum", [products, axis], [product], name=product, keepdims=0),
        ]

    replace_nodes(graph, [part for node in graph.node for part in halved(node)])
