"""The forward pass of a flat graph, taken out of it as a model of its own, and put back in smaller numbers.

What makes numbers smaller is written for plain networks. So it is given one: a graph that holds neither branches nor loops, whose outputs
are all that maps need of it. They are closed up around it only afterwards.
"""

from __future__ import annotations

import graphlib
from collections.abc import Collection, Sequence

from onnx import GraphProto, ModelProto, NodeProto, helper

from tlcli.exports.rewrite.graph_edit import copied, nodes_behind, producers, rename, replace_nodes, taken_by

_ENDS_OF_SMALL_NUMBERS = ("DequantizeLinear", "Cast")


def take_out(flat: ModelProto, ends: Sequence[str], starts: Collection[str] = ()) -> ModelProto:
    """The part of a flat graph that `ends` are computed from, with the values that the rest takes of it as outputs.

    Args:
        flat: with the types of its values; it is not changed.
        ends: values.
        starts: values that are inputs of the part, instead of what they are computed from.
    """
    graph = flat.graph
    nodes = list(graph.node)
    inside = nodes_behind(nodes, ends, stop=starts)
    within = [copied(nodes[number]) for number in sorted(inside)]
    needed = needed_outside(graph, ends, starts) | {*ends}
    taken = {value for node in within for value in taken_by(node)}
    made = [value for node in within for value in node.output]
    types = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
    part = helper.make_graph(
        within,
        "forward",
        [value for value in graph.input if value.name in taken] + [types[name] for name in starts],
        [types[name] for name in made if name in needed],
        [weight for weight in graph.initializer if weight.name in taken],
        value_info=[types[name] for name in made if name not in needed and name in types],
    )
    return helper.make_model(part, opset_imports=flat.opset_import, ir_version=flat.ir_version)


def put_back(flat: ModelProto, ends: Sequence[str], part: ModelProto, weights: Sequence[NodeProto], starts: Collection[str] = ()) -> None:
    """Replace the part that `take_out` took by what was made of it; `flat` is rewritten in place.

    What the rest takes of it, it takes as float: the last step to it, from the small numbers, is a step of the rest's own, so that
    it costs only those who ask for the rest.

    Args:
        flat, ends, starts: as in `take_out`.
        part: with the same outputs, each the result of a `DequantizeLinear` or `Cast` of its own where it is not computed in float.
        weights: nodes that make of the part's weights those that the rest takes, in float, under their old names.
    """
    graph = flat.graph
    nodes = list(graph.node)
    inside = nodes_behind(nodes, ends, stop=starts)
    rest = [node for number, node in enumerate(nodes) if number not in inside]
    needed = needed_outside(graph, ends, starts)
    within = [copied(node) for node in part.graph.node]
    maker = producers(within)
    steps = []
    for value in (output.name for output in part.graph.output):
        node = within[maker[value]]
        if value in needed and node.op_type in _ENDS_OF_SMALL_NUMBERS and any(value in taken_by(user) for user in within):
            step = copied(node)
            step.name = f"{node.name}/outside"
            steps.append(step)
            for one in within:
                rename(one, {value: f"{value}/within"})
    replace_nodes(graph, in_order([*within, *steps, *weights, *rest]))
    made = {value for node in weights for value in node.output}
    there = {weight.name for weight in part.graph.initializer}
    kept = [copied(weight) for weight in graph.initializer if weight.name in needed and weight.name not in made | there]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *part.graph.initializer])
    del flat.opset_import[:]
    flat.opset_import.extend(part.opset_import)
    del graph.value_info[:]


def in_order(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Each after those it takes something from."""
    maker = producers(nodes)
    before = {number: {maker[value] for value in taken_by(node) if value in maker} for number, node in enumerate(nodes)}
    return [nodes[number] for number in graphlib.TopologicalSorter(before).static_order()]


def needed_outside(graph: GraphProto, ends: Sequence[str], starts: Collection[str] = ()) -> set[str]:
    """The values and weights that nodes outside of the part `take_out` takes are computed from, and the graph's outputs."""
    nodes = list(graph.node)
    inside = nodes_behind(nodes, ends, stop=starts)
    return {value.name for value in graph.output}.union(*(taken_by(node) for number, node in enumerate(nodes) if number not in inside))
