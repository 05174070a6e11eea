"""Shapes of values, computed from one number: that of the images.

Exporters ask many values of a graph for their shape. A part of the graph that runs on other images, as for Ablation-CAM and finite
differences, then needs that number only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import GraphProto, NodeProto, helper

from tlcli.exports.onnx_source.graph.extents import Extent
from tlcli.exports.rewrite.graph_edit import add_constant, replace_nodes

COUNT = "source/image count"
"""Name of the number of images, int64 `[1]`."""


def use_image_count(graph: GraphProto, source_input: str, extents: dict[str, Extent]) -> None:
    """Replace `Shape` and `Size` of values with known extents, in place."""
    nodes: list[NodeProto] = []
    for node in graph.node:
        extent = extents.get(node.input[0]) if node.op_type in ("Shape", "Size") else None
        if extent is None or node.output[0] == COUNT:
            nodes.append(node)
        else:
            if not any(COUNT in other.output for other in nodes):
                nodes.insert(0, counting_node(source_input))
            nodes.extend(_shape_nodes(graph, node, extent) if node.op_type == "Shape" else _size_nodes(graph, node, extent))
    replace_nodes(graph, nodes)


def counting_node(value: str) -> NodeProto:
    """Return the node that computes the number of images from a value with the batch first."""
    return helper.make_node("Shape", [value], [COUNT], name=COUNT, start=0, end=1)


def _shape_nodes(graph: GraphProto, node: NodeProto, extent: Extent) -> list[NodeProto]:
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    axes = range(extent.rank)[bounds.get("start", 0) : bounds.get("end", extent.rank)]
    made: list[NodeProto] = []
    parts: list[str] = []
    for axis in axes:
        if axis == extent.batch:
            rows, nodes = _times(graph, node.output[0], extent.dims[axis])
            made.extend(nodes)
            parts.append(rows)
        else:
            parts.append(_constant(graph, f"{node.output[0]}/axis {axis}", [extent.dims[axis]]))
    return [*made, helper.make_node("Concat", parts, list(node.output), name=node.name, axis=0)]


def _size_nodes(graph: GraphProto, node: NodeProto, extent: Extent) -> list[NodeProto]:
    total, made = _times(graph, node.output[0], math.prod(extent.dims))
    scalar = _constant(graph, f"{node.output[0]}/scalar", [])
    return [*made, helper.make_node("Reshape", [total, scalar], list(node.output), name=node.name)]


def _times(graph: GraphProto, prefix: str, factor: int) -> tuple[str, list[NodeProto]]:
    """Return the number of images times a factor, and the nodes that compute it."""
    if factor == 1:
        return COUNT, []
    name = f"{prefix}/rows"
    return name, [helper.make_node("Mul", [COUNT, _constant(graph, f"{prefix}/rows per image", [factor])], [name], name=name)]


def _constant(graph: GraphProto, name: str, values: Sequence[int]) -> str:
    return add_constant(graph, name, np.array(values, dtype=np.int64))
