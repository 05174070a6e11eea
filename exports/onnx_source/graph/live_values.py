"""Values of a graph that are still needed after each of its nodes: together, all paths from the images to the logits pass them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from onnx import NodeProto

from tlcli.exports.onnx_source.graph.observed_graph import ObservedGraph


def live_values(
    graph: ObservedGraph, path: Sequence[NodeProto], unread: Collection[tuple[int, str]] = ()
) -> Iterator[tuple[NodeProto, set[str]]]:
    """Yield each node that depends on the images, with the values that are needed after it.

    Args:
        graph: observed graph.
        path: nodes between the images and the logits, in topological order.
        unread: uses that do not count, as pairs of a node's index in `path` and a value.
    """
    reached = graph.dependents([graph.input])
    ignored = {(id(path[index]), name) for index, name in unread}
    nodes = [node for node in path if not reached.isdisjoint(node.output)]
    used = [{name for name in node.input if name in reached and (id(node), name) not in ignored} for node in nodes]
    remaining: dict[str, int] = {}
    for names in used:
        for name in names:
            remaining[name] = remaining.get(name, 0) + 1
    live = {graph.input}
    for node, names in zip(nodes, used, strict=True):
        for name in names & live:
            remaining[name] -= 1
            if not remaining[name]:
                live.remove(name)
        live |= {name for name in node.output if remaining.get(name)}
        yield node, set(live)
