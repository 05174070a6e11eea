"""Sizes that the exporter took from extra inputs, which do not stay in the graph: taken from the real inputs instead."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto


def take_sizes_from(graph: GraphProto, value: str, sources: Mapping[int, tuple[str, int]]) -> None:
    """Replace the `Shape` operators of `value` by those of other inputs; `graph` is flat, and rewritten in place.

    Args:
        graph: every `Shape` of `value` in it returns one dimension.
        value: an input that is about to be removed.
        sources: for each of its open dimensions, another input and the dimension of it that has the same size.

    Raises:
        NotImplementedError: a `Shape` returns several dimensions, or one without a source.
    """
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] == value:
            bounds = {attribute.name: attribute for attribute in node.attribute}
            start, end = (bounds[name].i if name in bounds else None for name in ("start", "end"))
            if start is None or end != start + 1 or start not in sources:
                raise NotImplementedError(f"sizes {start} to {end} of {value}: expected one open dimension")
            node.input[0], bounds["start"].i = sources[start]
            bounds["end"].i = bounds["start"].i + 1
