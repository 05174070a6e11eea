"""Linear layers on the rows of all images and positions, positions first, such as the last layer of PyTorch's multi-head attention.

`[t, N, c]`, reshaped to `[t * N, c]`, holds the rows of one image far apart, and no batch axis. The layer treats all rows alike, so it
works on `[t, N, c]` as well.
"""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from tlcli.exports.onnx_source.graph.extents import Extent
from tlcli.exports.rewrite.graph_edit import add_constant, replace_nodes


def separate_rows(graph: GraphProto, extents: dict[str, Extent]) -> bool:
    """Replace Reshape and Gemm over joint rows by Reshape, MatMul and Add that keep the batch axis. Return True if there was one."""
    weights = {weight.name: weight for weight in graph.initializer}
    takers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            takers.setdefault(name, []).append(node)
    nodes: list[NodeProto] = []
    changed: set[str] = set()
    for node in graph.node:
        layer = _layer_on_joint_rows(node, takers, extents, set(weights))
        if layer is not None:
            source = extents[node.input[0]]
            axes = [*source.dims[: source.batch], -1, extents[node.output[0]].dims[1]]
            shape = add_constant(graph, f"{node.output[0]}/separate_rows", np.array(axes, dtype=np.int64))
            nodes.append(helper.make_node("Reshape", [node.input[0], shape], [node.output[0]], name=node.name))
            changed.add(layer.name)
        elif node.name in changed:
            nodes.extend(_as_product(graph, node, numpy_helper.to_array(weights[node.input[1]])))
        else:
            nodes.append(node)
    replace_nodes(graph, nodes)
    return bool(changed)


def _layer_on_joint_rows(
    node: NodeProto, takers: dict[str, list[NodeProto]], extents: dict[str, Extent], weights: set[str]
) -> NodeProto | None:
    """Return the linear layer behind a reshape to joint rows, if all that follows it is a reshape back."""
    if node.op_type != "Reshape" or node.input[0] not in extents or node.output[0] not in extents:
        return None
    source, joint = extents[node.input[0]], extents[node.output[0]]
    behind = takers.get(node.output[0], [])
    if source.before == joint.before or source.dims[source.batch] != 1 or joint.rank != 2 or len(behind) != 1:
        return None
    (layer,) = behind
    if layer.op_type != "Gemm" or layer.input[0] != node.output[0] or not weights.issuperset(layer.input[1:]):
        return None
    plain = all(value.f == 1 for value in layer.attribute if value.name in ("alpha", "beta"))
    if not plain or any(value.i for value in layer.attribute if value.name == "transA"):
        return None
    returned = takers.get(layer.output[0], [])
    restored = all(
        taker.op_type == "Reshape" and taker.output[0] in extents and extents[taker.output[0]].before == source.before for taker in returned
    )
    return layer if returned and restored and joint.dims[0] == source.before else None


def _as_product(graph: GraphProto, layer: NodeProto, weight: np.ndarray) -> list[NodeProto]:
    transposed = any(value.i for value in layer.attribute if value.name == "transB")
    (output,) = layer.output
    name = add_constant(graph, f"{output}/weight", np.ascontiguousarray(weight.T if transposed else weight))
    product = output if len(layer.input) < 3 else f"{output}/product"
    nodes = [helper.make_node("MatMul", [layer.input[0], name], [product], name=layer.name)]
    if product != output:
        nodes.append(helper.make_node("Add", [product, layer.input[2]], [output], name=f"{layer.name}/bias"))
    return nodes
