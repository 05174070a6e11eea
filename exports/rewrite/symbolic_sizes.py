"""Redirection of size lookups from extra inputs, which are removed from the graph later, to the graph's permanent inputs."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto


def take_sizes_from(graph: GraphProto, value: str, sources: Mapping[int, tuple[str, int]]) -> None:
    """Make the `Shape` operators of `value` read from other inputs instead.

    Args:
        graph: flat graph in which every `Shape` of `value` returns one dimension; modified in place.
        value: name of an input that is about to be removed.
        sources: for each dynamic dimension of `value`, another input and the dimension of that input with the same size.

    Raises:
        NotImplementedError: a `Shape` returns several dimensions, or a dimension without a source.
    """
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] == value:
            bounds = {attribute.name: attribute for attribute in node.attribute}
            start, end = (bounds[name].i if name in bounds else None for name in ("start", "end"))
            if start is None or end != start + 1 or start not in sources:
                raise NotImplementedError(f"sizes {start} to {end} of {value}: expected one open dimension")
            node.input[0], bounds["start"].i = sources[start]
            bounds["end"].i = bounds["start"].i + 1
