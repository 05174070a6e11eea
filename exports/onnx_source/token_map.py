"""Map `[N, c, h, w]` in the tokens of a graph: nodes that take it out, and put it back where it was.

Everything behind the map then is a graph like that of any other layer.
"""

from __future__ import annotations

from dataclasses import replace

from tlcli.exports.onnx_source.graph.extents import Extent
from tlcli.exports.onnx_source.graph.node_writer import NodeWriter, sizes
from tlcli.exports.onnx_source.graph.observed_graph import ObservedGraph
from tlcli.exports.onnx_source.spatial_values import SpatialValue


def as_map(graph: ObservedGraph, value: SpatialValue) -> SpatialValue:
    """Return a value's map as a value `[N, c, h, w]` of the graph, which is modified for tokens; other values are returned as they are."""
    if value.prefix is None:
        return value
    writer = NodeWriter(f"{value.name}/tokens/")
    height, width, channels, prefix = value.height, value.width, value.channels, value.prefix
    count = prefix + height * width
    extents: dict[str, Extent] = {}

    def op(operator: str, *inputs: object, shape: tuple[int, ...], **attributes: object) -> str:
        name = writer.op(operator, *inputs, **attributes)  # type: ignore[arg-type]
        extents[name] = Extent((1, *shape), 0)
        return name

    patches = value.name
    if prefix:
        patches = op("Slice", patches, sizes(prefix), sizes(count), sizes(1), shape=(height * width, channels))
    rows = op("Reshape", patches, sizes(-1, height, width, channels), shape=(height, width, channels))
    spatial = op("Transpose", rows, perm=[0, 3, 1, 2], shape=(channels, height, width))
    restored = op("Transpose", spatial, perm=[0, 2, 3, 1], shape=(height, width, channels))
    restored = op("Reshape", restored, sizes(-1, height * width, channels), shape=(height * width, channels))
    if prefix:
        before = op("Slice", value.name, sizes(0), sizes(prefix), sizes(1), shape=(prefix, channels))
        restored = op("Concat", before, restored, axis=1, shape=(count, channels))
    graph.insert_behind(value.name, restored, writer.nodes, writer.constants, extents)
    return replace(value, name=spatial, prefix=None, tokens=restored)
