"""Extraction of a flat graph's forward pass as a separate model, and reinsertion after conversion.

Libraries for reduced precision expect plain networks. The extracted model is one: it has no branches or loops, and its outputs are all the
values that the maps need. Branches are added only after the converted forward pass is back in the graph.
"""

from __future__ import annotations

import graphlib
from collections.abc import Collection, Sequence

from onnx import GraphProto, ModelProto, NodeProto, helper

from tlcli.exports.rewrite.graph_edit import copied, producers, rename, replace_nodes, taken_by, upstream_nodes

_CASTS_TO_FLOAT = ("DequantizeLinear", "Cast")


def take_out(flat: ModelProto, ends: Sequence[str], starts: Collection[str] = ()) -> ModelProto:
    """Extract the subgraph of a flat graph that computes `ends`. Its outputs are all the values that the rest of the graph takes from it.

    Args:
        flat: flat graph with the types of its values; it is not modified.
        ends: names of the values to compute.
        starts: names of values that become inputs of the subgraph instead of being computed in it.
    """
    graph = flat.graph
    part_nodes = [copied(node) for node in _split(graph, ends, starts)[0]]
    needed = needed_outside(graph, ends, starts) | {*ends}
    taken = {value for node in part_nodes for value in taken_by(node)}
    computed = [value for node in part_nodes for value in node.output]
    types = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
    part = helper.make_graph(
        part_nodes,
        "forward",
        [value for value in graph.input if value.name in taken] + [types[name] for name in starts],
        [types[name] for name in computed if name in needed],
        [weight for weight in graph.initializer if weight.name in taken],
        value_info=[types[name] for name in computed if name not in needed and name in types],
    )
    return helper.make_model(part, opset_imports=flat.opset_import, ir_version=flat.ir_version)


def put_back(flat: ModelProto, ends: Sequence[str], part: ModelProto, weights: Sequence[NodeProto], starts: Collection[str] = ()) -> None:
    """Replace the subgraph that `take_out` extracted with its converted form. `flat` is modified in place.

    The rest of the graph takes the subgraph's values as float, each through a separate cast, so that requests that do not need the rest do
    not run the casts.

    Args:
        flat, ends, starts: see `take_out`.
        part: converted subgraph with the same outputs. An output that is not computed in float is the result of its own
            `DequantizeLinear` or `Cast`.
        weights: nodes that convert the subgraph's weights to float, under the names that the rest of the graph uses.
    """
    graph = flat.graph
    _, rest = _split(graph, ends, starts)
    needed = needed_outside(graph, ends, starts)
    part_nodes = [copied(node) for node in part.graph.node]
    casts = _separate_casts(part_nodes, [output.name for output in part.graph.output if output.name in needed])
    recomputed = {value for node in weights for value in node.output} | {weight.name for weight in part.graph.initializer}
    kept = [copied(weight) for weight in graph.initializer if weight.name in needed - recomputed]
    replace_nodes(graph, in_order([*part_nodes, *casts, *weights, *rest]))
    del graph.initializer[:]
    graph.initializer.extend([*kept, *part.graph.initializer])
    del flat.opset_import[:]
    flat.opset_import.extend(part.opset_import)
    del graph.value_info[:]


def _separate_casts(part_nodes: Sequence[NodeProto], outputs: Sequence[str]) -> list[NodeProto]:
    """Duplicate the casts of outputs that the subgraph also uses itself, so that the rest of the graph has separate casts.

    Within the subgraph, these values are renamed.

    Returns:
        Copies of the casts to float, which compute the outputs under their original names.
    """
    producer = producers(part_nodes)
    casts = []
    for output in outputs:
        node = part_nodes[producer[output]]
        if node.op_type in _CASTS_TO_FLOAT and any(output in taken_by(user) for user in part_nodes):
            cast = copied(node)
            cast.name = f"{node.name}/outside"
            casts.append(cast)
            for part_node in part_nodes:
                rename(part_node, {output: f"{output}/within"})
    return casts


def in_order(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Return the nodes in topological order."""
    producer = producers(nodes)
    before = {index: {producer[value] for value in taken_by(node) if value in producer} for index, node in enumerate(nodes)}
    return [nodes[index] for index in graphlib.TopologicalSorter(before).static_order()]


def needed_outside(graph: GraphProto, ends: Sequence[str], starts: Collection[str] = ()) -> set[str]:
    """Return the names of the graph's outputs, and of the values and weights that nodes outside the extracted subgraph use."""
    _, rest = _split(graph, ends, starts)
    return {value.name for value in graph.output}.union(*(taken_by(node) for node in rest))


def _split(graph: GraphProto, ends: Sequence[str], starts: Collection[str]) -> tuple[list[NodeProto], list[NodeProto]]:
    """Split the nodes into those that compute `ends` from `starts` and the rest, both in graph order."""
    nodes = list(graph.node)
    inside = upstream_nodes(nodes, ends, stop=starts)
    return [nodes[index] for index in sorted(inside)], [node for index, node in enumerate(nodes) if index not in inside]
