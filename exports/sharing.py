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
from collections.abc import Iterable, Iterator

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from contract.description import IMAGES

_PLACE = "shared_weights"

_LEAST_BYTES = 4 * 2**20
"""A smaller weight may be packed twice."""


def share_weights(graph: GraphProto) -> None:
    """Let all users of a matrix that several multiply with, or look rows up in, take it where it lies; rewritten in place."""
    matrices = {weight.name: weight for weight in graph.initializer if len(weight.dims) == 2 and 4 * math.prod(weight.dims) >= _LEAST_BYTES}
    users = Counter(name for node in _all(graph.node) for name in set(node.input) if name in matrices)
    shared = [name for name, count in users.items() if count > 1]
    if not shared:
        return
    nothing = f"{_PLACE}/nothing"  # 0, as no times the number of pictures: not a constant
    graph.initializer.append(numpy_helper.from_array(np.array([0], dtype=np.int64), f"{_PLACE}/none"))
    first = [
        helper.make_node("Shape", [IMAGES], [f"{_PLACE}/pictures"], name=f"{_PLACE}/pictures", start=0, end=1),
        helper.make_node("Mul", [f"{_PLACE}/pictures", f"{_PLACE}/none"], [nothing], name=nothing),
    ]
    for name in shared:
        size, shape, where = f"{name}/size", f"{name}/shape", f"{name}/where_it_lies"
        graph.initializer.append(numpy_helper.from_array(np.array(matrices[name].dims, dtype=np.int64), size))
        for node in _all(graph.node):
            taken = [where if value == name else value for value in node.input]
            del node.input[:]
            node.input.extend(taken)
        first.append(helper.make_node("Add", [size, nothing], [shape], name=shape))
        first.append(helper.make_node("Reshape", [name, shape], [where], name=where))
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in (*first, *graph.node)]
    del graph.node[:]
    graph.node.extend(nodes)


def _all(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """With those in subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _all(attribute.g.node)
