"""Memory sharing for large matrices that both the forward and the backward pass multiply with.

ONNX Runtime packs a constant right operand of a product into its own layout, separately for each product, and also keeps the original if
another node needs it, so VGG's fc6 would be in memory three times. If a matrix is not known to be constant, the product reads it in place,
just as fast. Therefore a large matrix with several users passes through a `Reshape` to its own shape. The `Reshape` copies nothing, and
ONNX Runtime cannot fold it, because the shape depends on an input that has a default. OpenVINO treats such an input as a constant, so it
sees a constant matrix, as its products require.
"""

from __future__ import annotations

import math
from collections import Counter

from onnx import GraphProto, helper

from tlcli.contract.model.description import TARGETS
from tlcli.exports.rewrite.graph_edit import add_constant, replace_nodes, take_instead, with_inner

_PLACE = "shared_weights"

LEAST_BYTES = 4 * 2**20
"""Minimum size of a matrix to share, in bytes. Smaller matrices may be packed twice."""


def share_weights(graph: GraphProto) -> None:
    """Make products and lookups that share a large matrix read the same memory. The graph is modified in place."""
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
        shape, shared_name = f"{name}/shape", f"{name}/where_it_lies"
        size = add_constant(graph, f"{name}/size", matrices[name].dims)
        for node in with_inner(graph.node):
            take_instead(node, name, shared_name)
        first.append(helper.make_node("Add", [size, nothing], [shape], name=shape))
        first.append(helper.make_node("Reshape", [name, shape], [shared_name], name=shared_name))
    replace_nodes(graph, [*first, *graph.node])
