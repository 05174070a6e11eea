"""Maps that are not asked for are not computed: each stands in an ONNX `If` of its own.

A runtime computes a whole graph, whichever outputs a request fetches (ONNX Runtime's `only_execute_path_to_fetches` does
nothing in its released builds). So the graph itself takes an input, `wanted`: a truth value a map, true by default.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from contract.description import WANTED


def gate(graph: GraphProto, methods: Sequence[str], shared: str, else_shapes: Mapping[str, Sequence[int]]) -> None:
    """Rewrite `graph` in place.

    Args:
        graph: flat; every name in `methods`, and `shared`, is one of its outputs.
        methods: the map outputs, in the order of `wanted`.
        shared: the output that several maps are made of, the gradient. It ceases to be an output, and is computed if a
            map that needs it is wanted.
        else_shapes: for each of those outputs, the shape of the empty tensor that stands for it when it is not computed.
    """
    producer = {name: number for number, node in enumerate(graph.node) for name in node.output}
    always = _behind(graph, producer, [output.name for output in graph.output if output.name not in (*methods, shared)])
    behind_shared = _behind(graph, producer, [shared]) - always
    own = {method: _behind(graph, producer, [method], stop=shared) - always for method in methods}
    users = [method for method in methods if any(shared in graph.node[number].input for number in own[method])]

    nodes = [graph.node[number] for number in sorted(always)]
    for number, method in enumerate(methods):
        graph.initializer.append(numpy_helper.from_array(np.array(number, dtype=np.int64), f"{WANTED}/number/{method}"))
        nodes.append(helper.make_node("Gather", [WANTED, f"{WANTED}/number/{method}"], [f"{WANTED}/{method}"], axis=0))
    if users:
        condition = f"{WANTED}/{users[0]}"
        for user in users[1:]:
            previous, condition = condition, f"{WANTED}/{shared}/{user}"
            nodes.append(helper.make_node("Or", [previous, f"{WANTED}/{user}"], [condition]))
        nodes.append(_if(condition, shared, [graph.node[number] for number in sorted(behind_shared)], else_shapes[shared]))
    nodes += [
        _if(f"{WANTED}/{method}", method, [graph.node[number] for number in sorted(own[method])], else_shapes[method]) for method in methods
    ]

    nodes = [NodeProto.FromString(node.SerializeToString()) for node in nodes]  # the originals go with the list that holds them
    del graph.node[:]
    graph.node.extend(nodes)
    (number,) = (number for number, output in enumerate(graph.output) if output.name == shared)
    del graph.output[number]
    graph.input.append(helper.make_tensor_value_info(WANTED, TensorProto.BOOL, [len(methods)]))
    graph.initializer.append(numpy_helper.from_array(np.ones(len(methods), dtype=bool), WANTED))


def _behind(graph: GraphProto, producer: Mapping[str, int], outputs: Iterable[str], stop: str | None = None) -> set[int]:
    """The numbers of the nodes that `outputs` are computed from, without those behind the value `stop`."""
    found: set[int] = set()
    waiting = list(outputs)
    while waiting:
        number = producer.get(waiting.pop())
        if number is not None and number not in found:
            found.add(number)
            waiting.extend(name for name in graph.node[number].input if name != stop)
    return found


def _if(condition: str, output: str, nodes: Sequence[NodeProto], else_shape: Sequence[int]) -> NodeProto:
    """`output = nodes if condition else an empty tensor`. Values inside get names of their own: no name may stand in two scopes."""
    inside = {name: f"{output}/{name}" for node in nodes for name in node.output if name}
    then_nodes = []
    for node in nodes:
        copy = NodeProto.FromString(node.SerializeToString())
        copy.name = f"{output}/{node.name}"
        for field in (copy.input, copy.output):
            renamed = [inside.get(name, name) for name in field]
            del field[:]
            field.extend(renamed)
        then_nodes.append(copy)
    empty = numpy_helper.from_array(np.zeros(else_shape, dtype=np.float32), f"{output}/empty")
    rank = len(else_shape)
    return helper.make_node(
        "If",
        [condition],
        [output],
        name=f"if_{output}",
        then_branch=helper.make_graph(then_nodes, f"{output}/then", [], [_value(inside[output], rank)]),
        else_branch=helper.make_graph(
            [helper.make_node("Constant", [], [f"{output}/none"], value=empty)], f"{output}/else", [], [_value(f"{output}/none", rank)]
        ),
    )


def _value(name: str, rank: int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
