"""The exporter's extra inputs give way to values of the graph; sizes that it took from them come from the real inputs instead."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto


def take_sizes_from(graph: GraphProto, value: str, sources: Mapping[int, tuple[str, int]]) -> None:
    """Let no `Shape` depend on `value`; `graph` is flat, and rewritten in place.

    Args:
        graph: every `Shape` of `value` in it answers one dimension.
        value: an input that will not stay one.
        sources: for each of its open dimensions another input and its dimension of the same size.

    Raises:
        NotImplementedError: a `Shape` answers more.
    """
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] == value:
            bounds = {attribute.name: attribute for attribute in node.attribute}
            start, end = (bounds[name].i if name in bounds else None for name in ("start", "end"))
            if start is None or end != start + 1 or start not in sources:
                raise NotImplementedError(f"the sizes {start} to {end} of {value}")
            node.input[0], bounds["start"].i = sources[start]
            bounds["end"].i = bounds["start"].i + 1
