"""Outputs that are not asked for are not computed: each stands in an ONNX `If` of its own.

A runtime computes a whole graph, whichever outputs a request fetches (ONNX Runtime's `only_execute_path_to_fetches` does
nothing in its released builds). So the graph itself takes an input, `wanted`: a truth value for each of these outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from contract.description import IMAGES, WANTED


def gate(graph: GraphProto, switches: Sequence[str], else_shapes: Mapping[str, Sequence[int]], default: Sequence[bool]) -> None:
    """Rewrite `graph` in place.

    Args:
        graph: flat, save for loops; every name in `switches` is one of its outputs. One may be computed from another, as maps are
            from gradients: it then makes the other wanted.
        switches: the outputs, in the order of `wanted`.
        else_shapes: for each of them, the shape of the empty tensor that stands for it when it is not computed.
        default: whether each is computed when `wanted` is left out.
    """
    nodes = list(graph.node)
    producer = {name: number for number, node in enumerate(nodes) for name in node.output}
    always = _behind(nodes, producer, [output.name for output in graph.output if output.name not in switches])
    # Sizes and the like, which cost nothing; OpenVINO cannot take a graph's optional input inside a branch.
    dependent = _dependent_on_contents(nodes, IMAGES)
    for number in sorted(_behind(nodes, producer, switches) - always - dependent):
        if all(producer[name] in always for name in _inputs(nodes[number]) if name in producer):
            always.add(number)
    own = {name: _behind(nodes, producer, [name], stop=set(switches) - {name}) - always for name in switches}
    takes = {name: [other for other in switches if any(other in _inputs(nodes[number]) for number in own[name])] for name in switches}

    result = [nodes[number] for number in sorted(always)]
    graph.initializer.append(numpy_helper.from_array(np.array([0], dtype=np.int64), f"{WANTED}/first"))
    result += [
        helper.make_node("Cast", [WANTED], [f"{WANTED}/as_number"], to=TensorProto.INT32, name=f"{WANTED}/as_number"),
        helper.make_node("ReduceMax", [f"{WANTED}/as_number", f"{WANTED}/first"], [f"{WANTED}/any"], keepdims=0, name=f"{WANTED}/any"),
        helper.make_node("Cast", [f"{WANTED}/any"], [f"{WANTED}/all"], to=TensorProto.BOOL, name=f"{WANTED}/all"),
    ]
    for number, name in enumerate(switches):
        graph.initializer.append(numpy_helper.from_array(np.array(number, dtype=np.int64), f"{WANTED}/number/{name}"))
        result.append(
            helper.make_node("Gather", [f"{WANTED}/all", f"{WANTED}/number/{name}"], [f"{WANTED}/{name}"], axis=0, name=f"{WANTED}/{name}")
        )
    for name in _in_order(switches, takes):
        condition = f"{WANTED}/{name}"
        for user in _users(name, takes):
            previous, condition = condition, f"{WANTED}/{name}/{user}"
            result.append(helper.make_node("Or", [previous, f"{WANTED}/{user}"], [condition], name=condition))
        result.append(_if(condition, name, [nodes[number] for number in sorted(own[name])], else_shapes[name]))

    _answer_copies(graph, result, switches)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in result]  # the originals go with the list that holds them
    del graph.node[:]
    graph.node.extend(copies)
    graph.input.append(helper.make_tensor_value_info(WANTED, TensorProto.BOOL, [None, len(switches)]))
    graph.initializer.append(numpy_helper.from_array(np.array([default], dtype=bool), WANTED))


def _answer_copies(graph: GraphProto, nodes: list[NodeProto], switches: Sequence[str]) -> None:
    """Let the graph answer copies of those outputs that branches take: OpenVINO counts them among the branches' own."""
    taken = {value for node in nodes if node.op_type == "If" for value in _inputs(node)}
    shared = {output.name: f"{output.name}/value" for output in graph.output if output.name in taken and output.name not in switches}
    for node in nodes:
        _rename(node, shared)
    nodes += [helper.make_node("Identity", [value], [name], name=value) for name, value in shared.items()]


def _inputs(node: NodeProto) -> set[str]:
    """What a node takes, its subgraphs' captured values among it."""
    found = set(node.input)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inside in attribute.g.node:
                found |= _inputs(inside)
    return found


def _behind(nodes: Sequence[NodeProto], producer: Mapping[str, int], outputs: Iterable[str], stop: Iterable[str] = ()) -> set[int]:
    """The numbers of the nodes that `outputs` are computed from, without those behind the values `stop`."""
    found: set[int] = set()
    waiting = list(outputs)
    while waiting:
        number = producer.get(waiting.pop())
        if number is not None and number not in found:
            found.add(number)
            waiting.extend(_inputs(nodes[number]).difference(stop))
    return found


def _dependent_on_contents(nodes: Sequence[NodeProto], value: str) -> set[int]:
    """The numbers of the nodes that depend on a value, on more than its shape; `nodes` are in topological order."""
    reached, found = {value}, set()
    for number, node in enumerate(nodes):
        if node.op_type != "Shape" and not reached.isdisjoint(_inputs(node)):
            found.add(number)
            reached.update(node.output)
    return found


def _in_order(names: Sequence[str], takes: Mapping[str, Sequence[str]]) -> list[str]:
    """Each after those that it takes."""
    ordered: list[str] = []

    def add(name: str) -> None:
        for other in takes[name]:
            add(other)
        if name not in ordered:
            ordered.append(name)

    for name in names:
        add(name)
    return ordered


def _users(name: str, takes: Mapping[str, Sequence[str]]) -> list[str]:
    """Those that take it, or take one that does."""
    found: list[str] = []
    waiting = [name]
    while waiting:
        current = waiting.pop()
        for other in takes:
            if current in takes[other] and other not in found:
                found.append(other)
                waiting.append(other)
    return found


def _if(condition: str, output: str, nodes: Sequence[NodeProto], else_shape: Sequence[int]) -> NodeProto:
    """`output = nodes if condition else an empty tensor`."""
    inside = {name: f"{output}/{name}" for node in nodes for name in _names(node)}
    then_nodes = [_renamed(node, inside, output) for node in nodes]
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


def _names(node: NodeProto) -> set[str]:
    """The values that a node defines, in its subgraphs too."""
    found = {name for name in node.output if name}
    for attribute in node.attribute:
        if attribute.HasField("g"):
            found |= {value.name for value in attribute.g.input}
            for inside in attribute.g.node:
                found |= _names(inside)
    return found


def _renamed(node: NodeProto, names: Mapping[str, str], prefix: str) -> NodeProto:
    """A copy whose values have names of their own: no name may stand in two scopes."""
    copy = NodeProto.FromString(node.SerializeToString())
    _rename(copy, names, f"{prefix}/")
    return copy


def _rename(node: NodeProto, names: Mapping[str, str], prefix: str = "") -> None:
    node.name = f"{prefix}{node.name}"
    for field in (node.input, node.output):
        renamed = [names.get(name, name) for name in field]
        del field[:]
        field.extend(renamed)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inside in attribute.g.node:
                _rename(inside, names, prefix)
            for value in (*attribute.g.input, *attribute.g.output):
                value.name = names.get(value.name, value.name)


def _value(name: str, rank: int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
