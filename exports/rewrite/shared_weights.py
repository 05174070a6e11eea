"""Weights that the forward and the backward pass both take: kept once.

ONNX Runtime packs a constant that stands on the right of a product into an order of its own, for each product anew, and keeps the
original too if anything else needs it: VGG's fc6 would be in memory three times. Products with a matrix that is not known to be a
constant read it where it lies, as fast. So a large matrix with several users passes through a `Reshape` to its own shape, which
ONNX Runtime cannot see through: it copies nothing. The shape comes from an input that has a default. To OpenVINO such an input is a
constant, so it sees a constant matrix, as its products must.
"""

from __future__ import annotations

import math
from collections import Counter

from onnx import GraphProto, helper

from tlcli.contract.model.description import TARGETS
from tlcli.exports.rewrite.graph_edit import add_constant, replace_nodes, take_instead, with_inner

_PLACE = "shared_weights"

LEAST_BYTES = 4 * 2**20
"""A smaller weight may be packed twice."""


def share_weights(graph: GraphProto) -> None:
    """Let all users of a matrix that several multiply with, or look rows up in, take it where it lies; rewritten in place."""
    matrices = {weight.name: weight for weight in graph.initializer if len(weight.dims) == 2 and 4 * math.prod(weight.dims) >= LEAST_BYTES}
    users = Counter(name for node in with_inner(graph.node) for name in set(node.input) if name in matrices)
    shared = [name for name, count in users.items() if count > 1]
    if not shared:
        return
    rows, nothing = f"{_PLACE}/rows", f"{_PLACE}/nothing"
    first = [
        helper.make_node("Shape", [TARGETS], [rows], name=rows, start=0, end=1),
        helper.make_node("Mul", [rows, add_constant(graph, f"{_PLACE}/none", [0])], [nothing], name=nothing),
    ]
    for name in shared:
        shape, where = f"{name}/shape", f"{name}/where_it_lies"
        size = add_constant(graph, f"{name}/size", matrices[name].dims)
        for node in with_inner(graph.node):
            take_instead(node, name, where)
        first.append(helper.make_node("Add", [size, nothing], [shape], name=shape))
        first.append(helper.make_node("Reshape", [name, shape], [where], name=where))
    replace_nodes(graph, [*first, *graph.node])
