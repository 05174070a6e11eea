"""Partition of a joint graph into subgraphs that run separately.

The subgraphs are the forward pass, the backward pass, and the computation from each layer's activations to the embedding z.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tlcli.exports.trace.graph_nodes import grows_with, is_size, number_of_images, rows_per_image

aten = torch.ops.aten


@dataclass(frozen=True)
class Partition:
    """Subgraphs of a joint graph.

    forward: computes z, the layers' activations, and the residuals from the input. Residuals are values of the forward pass that the other
        graphs need.
    backward: computes the gradients, and the means that the joint graph returns, from a cotangent and its saved inputs.
    from_activations: one graph per layer, which computes z from the layer's activations and its saved inputs.
    saved_inputs: indices of the residuals that each graph takes, for the graphs of `from_activations` in order, then for `backward`.
    rows: number of rows per image of each residual; 0 if the residual does not grow with the batch.
    """

    forward: fx.GraphModule
    backward: fx.GraphModule
    from_activations: tuple[fx.GraphModule, ...]
    saved_inputs: tuple[tuple[int, ...], ...]
    rows: tuple[int, ...]


def partition(traced: fx.GraphModule, layers: int) -> Partition:
    """Split a joint graph into its subgraphs.

    Take a network of a convolution, whose output A is explained, a ReLU, and the mean over n positions. Its joint graph is

        x ── conv ── A ─┬─ relu ── mean ── z
                        └─ A > 0 ── mask ──────────┐
        c ── expand to size(A) ── divide by n ── multiply ── dy/dA

    and is split into

        forward            x    ->  z, A, mask      conv, relu, mean, A > 0
        backward           c, mask  ->  dy/dA       expand, divide, multiply
        from_activations   A    ->  z               relu, mean

    The mask depends on A but not on the cotangent c, so it is a residual, computed once per image. The number of rows in size(A) is not a
    residual: the backward graph has one row per image and class, so it reads that number from c.

    Args:
        traced: joint graph `(input, cotangent) -> (z, *activations, *gradients, *means)`, see
            `tlcli.exports.trace.joint_trace.JointTrace`.
        layers: number of layers.

    Raises:
        NotImplementedError: an operator fixes the batch size, or a residual mixes images.
    """
    joint = _Joint.of(traced, layers)
    backward_nodes = _depending_on_cotangent(joint)
    recomputed = _recomputed_in_each_graph(joint, backward_nodes)
    regions = [
        *(_from_layer(joint, activations, backward_nodes, recomputed) for activations in joint.activations),
        _Region(joint.cotangent, backward_nodes, _saved_inputs(joint, joint.cotangent, backward_nodes, recomputed), joint.gradients),
    ]
    residuals = list(dict.fromkeys(itertools.chain.from_iterable(region.saved for region in regions)))
    *from_activations, backward = (_extract(joint, region, recomputed) for region in regions)
    return Partition(
        forward=_extract_forward(joint, backward_nodes, residuals),
        backward=backward,
        from_activations=tuple(from_activations),
        saved_inputs=tuple(tuple(residuals.index(node) for node in region.saved) for region in regions),
        rows=tuple(rows_per_image(node, joint.batch) for node in residuals),
    )


@dataclass(frozen=True)
class _Joint:
    """Inputs and outputs of a joint graph.

    gradients: gradients of the layers, followed by the means.
    batch: symbol of the batch size.
    """

    traced: fx.GraphModule
    inputs: fx.Node
    cotangent: fx.Node
    z: fx.Node
    activations: tuple[fx.Node, ...]
    gradients: tuple[fx.Node, ...]
    batch: Any

    @classmethod
    def of(cls, traced: fx.GraphModule, layers: int) -> _Joint:
        inputs, cotangent = (node for node in traced.graph.nodes if node.op == "placeholder")
        (output,) = (node for node in traced.graph.nodes if node.op == "output")
        z, *others = output.args[0]
        batch = number_of_images(inputs)
        if batch is None:
            raise NotImplementedError("an operator fixes the number of images")
        return cls(traced, inputs, cotangent, z, tuple(others[:layers]), tuple(others[layers:]), batch)


@dataclass(frozen=True)
class _Region:
    """Region of the joint graph that becomes the backward graph or one of the `from_activations` graphs.

    start: first input.
    nodes: nodes computed in the region.
    saved: remaining inputs, which are values of the forward graph.
    outputs: values that the region returns.
    """

    start: fx.Node
    nodes: set[fx.Node]
    saved: list[fx.Node]
    outputs: Sequence[fx.Node]


def _depending_on_cotangent(joint: _Joint) -> set[fx.Node]:
    """Return the nodes of the backward pass, including gradients that do not depend on the cotangent because they are always zero."""
    return (_downstream(joint.traced.graph, joint.cotangent) - {joint.cotangent}) | set(joint.gradients)


def _recomputed_in_each_graph(joint: _Joint, backward_nodes: set[fx.Node]) -> set[fx.Node]:
    """Return the sizes that grow with the batch, and constant tensors of such sizes. Each graph derives these from its own first input."""
    from_inputs = _downstream(joint.traced.graph, joint.inputs, through_sizes=False)
    computed = from_inputs | backward_nodes | {joint.cotangent}
    return {node for node in joint.traced.graph.nodes if grows_with(node, joint.batch) and node not in computed}


def _from_layer(joint: _Joint, activations: fx.Node, backward_nodes: set[fx.Node], recomputed: set[fx.Node]) -> _Region:
    """Return the region from a layer's activations to z. If z does not depend on the layer, z itself is a saved input."""
    nodes = _downstream(joint.traced.graph, activations) - {activations} - backward_nodes
    saved = _saved_inputs(joint, activations, nodes, recomputed)
    if joint.z not in nodes and joint.z not in saved:
        saved.append(joint.z)
    return _Region(activations, nodes, saved, [joint.z])


def _saved_inputs(joint: _Joint, start: fx.Node, nodes: set[fx.Node], recomputed: set[fx.Node]) -> list[fx.Node]:
    """Return the values that a region takes from outside in graph order, except for its first input and the module's weights."""
    computed = nodes | recomputed
    saved: dict[fx.Node, None] = {}
    for node in joint.traced.graph.nodes:
        if node in computed and not is_size(node, joint.batch):
            outside = (value for value in node.all_input_nodes if value is not start and value not in computed and value.op != "get_attr")
            saved |= dict.fromkeys(outside)
    return list(saved)


def _extract_forward(joint: _Joint, backward_nodes: set[fx.Node], residuals: Sequence[fx.Node]) -> fx.GraphModule:
    skipped = backward_nodes | {joint.cotangent}
    graph = fx.Graph()
    copies = _copy((node for node in joint.traced.graph.nodes if node not in skipped and node.op != "output"), graph, {})
    graph.output(tuple(copies[node] for node in (joint.z, *joint.activations, *residuals)))
    return _module(joint, graph)


def _extract(joint: _Joint, region: _Region, recomputed: set[fx.Node]) -> fx.GraphModule:
    """Copy a region into a separate graph, which reads its batch size from its first input."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for number, node in enumerate((region.start, *region.saved)):
        copies[node] = graph.placeholder(f"input_{number}")
        copies[node].meta = dict(node.meta)
    rows = graph.call_function(aten.sym_size.int, (copies[region.start], 0))
    nodes = joint.traced.graph.nodes
    copies |= {node: rows for node in nodes if is_size(node, joint.batch)}
    computed = region.nodes | recomputed
    copies = _copy((node for node in nodes if node not in copies and (node in computed or node.op == "get_attr")), graph, copies)
    graph.output(tuple(copies[node] for node in region.outputs))
    return _module(joint, graph)


def _module(joint: _Joint, graph: fx.Graph) -> fx.GraphModule:
    graph.eliminate_dead_code()
    return fx.GraphModule(joint.traced, graph)


def _downstream(graph: fx.Graph, start: fx.Node, through_sizes: bool = True) -> set[fx.Node]:
    """Return `start` and all nodes computed from it. Without `through_sizes`, exclude nodes that depend only on its sizes."""
    reached = {start}
    for node in graph.nodes:
        if not reached.isdisjoint(node.all_input_nodes) and (through_sizes or not isinstance(node.meta.get("val"), torch.SymInt)):
            reached.add(node)
    return {node for node in reached if node.op != "output"}


def _copy(nodes: Iterable[fx.Node], graph: fx.Graph, copies: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    """Copy nodes into `graph`. Return a new mapping with the entries of `copies` and the new copies; `copies` is not modified."""
    copies = dict(copies)
    for node in nodes:
        copies[node] = graph.node_copy(node, lambda value: copies[value])
    return copies
