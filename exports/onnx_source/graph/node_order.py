"""Topological order of nodes. ONNX requires it, but ONNX Runtime does not, and some converters append nodes at the end."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import GraphProto, NodeProto

from tlcli.exports.rewrite.graph_edit import replace_nodes, taken_by


def sort_nodes(graph: GraphProto) -> None:
    """Move each node behind those whose outputs it takes. Nodes that are in order already keep their order."""
    nodes = list(graph.node)
    missing = {name for node in nodes for name in node.output if name}
    ordered: list[NodeProto] = []
    waiting: Sequence[NodeProto] = nodes
    while waiting:
        later: list[NodeProto] = []
        for node in waiting:
            if missing.isdisjoint(taken_by(node)):
                ordered.append(node)
                missing -= set(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):  # a cycle, which ONNX Runtime reports
            return
        waiting = later
    if any(node is not other for node, other in zip(nodes, ordered, strict=True)):
        replace_nodes(graph, ordered)
