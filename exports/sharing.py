"""Weights that the forward and the backward pass both multiply with, kept once.

ONNX Runtime packs a constant that stands on the right of a product into an order of its own, for each product anew, and keeps the
original too if anything else needs it: VGG's fc6 would be in memory three times. Products with a matrix that is not known to be a
constant read it where it lies, as fast. So a weight with several users passes through a `Reshape` to its own shape, which no
optimiser can see through: it copies nothing. OpenVINO cannot see through it either, and refuses such a product: so small
weights, whose copies cost little, are left as they are.
"""

from __future__ import annotations

import math
from collections import Counter

from onnx import GraphProto, helper

from contract.description import IMAGES
from exports.surgery import add_constant, replace_nodes, with_inner

_PLACE = "shared_weights"

_LEAST_BYTES = 4 * 2**20
"""A smaller weight may be packed twice."""


def share_weights(graph: GraphProto) -> None:
    """Let all users of a matrix that several multiply with, or look rows up in, take it where it lies; rewritten in place."""
    matrices = {weight.name: weight for weight in graph.initializer if len(weight.dims) == 2 and 4 * math.prod(weight.dims) >= _LEAST_BYTES}
    users = Counter(name for node in with_inner(graph.node) for name in set(node.input) if name in matrices)
    shared = [name for name, count in users.items() if count > 1]
    if not shared:
        return
    nothing = f"{_PLACE}/nothing"  # 0, as no times the number of pictures: not a constant
    first = [
        helper.make_node("Shape", [IMAGES], [f"{_PLACE}/pictures"], name=f"{_PLACE}/pictures", start=0, end=1),
        helper.make_node("Mul", [f"{_PLACE}/pictures", add_constant(graph, f"{_PLACE}/none", [0])], [nothing], name=nothing),
    ]
    for name in shared:
        shape, where = f"{name}/shape", f"{name}/where_it_lies"
        size = add_constant(graph, f"{name}/size", matrices[name].dims)
        for node in with_inner(graph.node):
            for place, value in enumerate(node.input):
                if value == name:
                    node.input[place] = where
        first.append(helper.make_node("Add", [size, nothing], [shape], name=shape))
        first.append(helper.make_node("Reshape", [name, shape], [where], name=where))
    replace_nodes(graph, [*first, *graph.node])
