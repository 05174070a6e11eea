"""Folding of batch norms into the preceding convolutions, so that precision is reduced on the weights that are actually multiplied.

A runtime folds batch norms when it loads a file, but not across the operators that quantisation inserts between convolution and batch norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, numpy_helper

from tlcli.exports.rewrite.graph_edit import add_constant, copied, replace_nodes

_EPSILON = 1e-5
"""ONNX's default of the attribute `epsilon`, for nodes without it."""


@dataclass(frozen=True)
class Folded:
    """Origin of a convolution's folded weight.

    weight: name of the original weight.
    factors: factor by which each output channel was multiplied.
    """

    weight: str
    factors: npt.NDArray[np.float32]


def fold_batch_norms(graph: GraphProto) -> dict[str, Folded]:
    """Fold each batch norm that is the only user of a convolution's output. The graph must be flat, and is modified in place.

    Returns:
        Mapping from the name of each folded weight to its origin.
    """
    weights = {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}
    outputs = {output.name for output in graph.output}
    users: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for value in node.input:
            users.setdefault(value, []).append(node)
    folded: dict[str, Folded] = {}
    removed: set[str] = set()
    for convolution in graph.node:
        (output,) = convolution.output if convolution.op_type == "Conv" else (None,)
        norm = users[output][0] if output is not None and output not in outputs and len(users.get(output, ())) == 1 else None
        if norm is None or norm.op_type != "BatchNormalization" or not {*convolution.input[1:], *norm.input[1:]} <= weights.keys():
            continue
        scale, shift, mean, variance = (weights[name] for name in norm.input[1:])
        epsilon = next((attribute.f for attribute in norm.attribute if attribute.name == "epsilon"), _EPSILON)
        factors = (scale / np.sqrt(variance + epsilon)).astype(np.float32)
        weight = weights[convolution.input[1]]
        bias = weights[convolution.input[2]] if len(convolution.input) > 2 else np.zeros_like(mean)
        name = f"{convolution.output[0]}/weight"
        folded[name] = Folded(convolution.input[1], factors)
        add_constant(graph, name, weight * factors.reshape(-1, *[1] * (weight.ndim - 1)))
        folded_bias = add_constant(graph, f"{convolution.output[0]}/bias", (bias - mean) * factors + shift)
        del convolution.input[1:]
        convolution.input.extend([name, folded_bias])
        convolution.output[0] = norm.output[0]
        removed.add(norm.name)
    replace_nodes(graph, [node for node in graph.node if node.name not in removed])
    taken = {value for node in graph.node for value in node.input}
    kept = [copied(weight) for weight in graph.initializer if weight.name in taken]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return folded
