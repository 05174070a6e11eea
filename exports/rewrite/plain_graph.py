"""Plain graphs for runtimes without branches, loops and optional inputs: browsers, OpenVINO, TensorRT, LiteRT.

A flat graph (see `tlcli.exports.onnx_writer.flat_graph`) already computes every map without branches. `make_plain` connects its extra
inputs by plain operators, keeps only the requested outputs, and evaluates at export everything that does not depend on the images and
targets, so that with a fixed batch no shape is computed at run time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper

from tlcli.contract.errors import ExportError
from tlcli.contract.model.description import CLASSES, IMAGES, LOGITS, SCORES, SOFTMAX, TARGETS, Plain
from tlcli.exports.rewrite.ablation_loop import ablated_input
from tlcli.exports.rewrite.graph_edit import (
    add_constant,
    copied,
    downstream_nodes,
    drop,
    rename,
    replace_nodes,
    upstream_nodes,
    with_inner,
)
from tlcli.exports.rewrite.openvino_weights import separate_square_weights
from tlcli.exports.rewrite.target_choice import COTANGENTS, LOGIT_COTANGENTS

_PLACE = "plain"
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
_FOLDED_BYTES = 1024
"""Largest constant that is evaluated at export: enough for shapes and indices. Larger ones would be stored twice."""

_WEIGHTED_SUM = "nkc,nchw->nkhw"
"""Equation of `tlcli.exports.trace.map_methods` for weights `[N, K, c]` and activations `[N, c, h, w]`."""

Shape = Sequence[int | str]


@dataclass(frozen=True)
class LinearAblation:
    """Layer for which Ablation-CAM has a closed form, because only the spatial mean and one linear layer follow it.

    The logit without a channel is the logit minus the channel's mean times its weight.

    number: index of the layer among the explained layers.
    features: name of the layer's activations, `[N, c, h, w]`.
    """

    number: int
    features: str


def make_plain(
    model: ModelProto, plain: Plain, maps: Sequence[str], shapes: Mapping[str, Shape], ablations: Sequence[LinearAblation] = ()
) -> None:
    """Turn a flat graph into a plain graph that computes the scores, the explained classes and some maps. The model is modified in place.

    The graph's inputs are `images` and, for classes that are chosen at run time, `targets` `[N, K]`. Maps explain logits.

    Args:
        model: flat graph.
        plain: form of the plain graph.
        maps: names of the outputs to compute besides `scores`, `logits` and `classes`.
        shapes: shape of each input and output, with names for dimensions of any size.
        ablations: layers for which Ablation-CAM is computed in closed form.

    Raises:
        ExportError: the network itself has branches or loops, or a map needs a loop.
    """
    graph = model.graph
    for ablation in ablations:
        _ablate(graph, ablation)
    _explain_logits(graph)
    _choose_classes(graph, plain)
    _keep_outputs(graph, [SCORES, LOGITS, CLASSES, *maps])
    _require_plain(graph)
    _multiply_matrices(graph)
    set_shapes(graph, shapes)
    _fold(model)
    graph = model.graph  # folding replaces it
    _keep_outputs(graph, [SCORES, LOGITS, CLASSES, *maps])
    separate_square_weights(graph)
    set_shapes(graph, shapes)


def set_shapes(graph: GraphProto, shapes: Mapping[str, Shape]) -> None:
    """Declare the shapes of the graph's inputs and outputs, and remove those of all other values."""
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.ClearField("shape")
        for size in shapes[value.name]:
            dimension = value.type.tensor_type.shape.dim.add()
            if isinstance(size, int):
                dimension.dim_value = size
            else:
                dimension.dim_param = size
    del graph.value_info[:]  # its dimensions still have the names that the tracer chose


def _explain_logits(graph: GraphProto) -> None:
    """Connect the cotangents of the logits to the gradient, and remove the choice between logits and probabilities."""
    nodes = [copied(node) for node in graph.node]
    dependent = downstream_nodes(nodes, SOFTMAX)
    for index in sorted(dependent):
        if nodes[index].op_type == "Where":
            nodes[index] = helper.make_node("Identity", [nodes[index].input[2]], nodes[index].output, name=nodes[index].name)
    first = upstream_nodes(nodes, [name for name in (LOGIT_COTANGENTS, CLASSES) if _is_computed(nodes, name)])
    for node in nodes:
        rename(node, {COTANGENTS: LOGIT_COTANGENTS})
    replace_nodes(graph, [nodes[index] for index in sorted(first)] + [node for index, node in enumerate(nodes) if index not in first])


def _choose_classes(graph: GraphProto, plain: Plain) -> None:
    """Take the explained classes from a row of targets per image, or rank the classes."""
    nodes = [copied(node) for node in graph.node]
    if plain.classes == "top":
        for node in nodes:
            if CLASSES in node.output:
                renamed = [f"{_PLACE}/{name}" if name == CLASSES else name for name in node.output]
                del node.output[:]
                node.output.extend(renamed)
        ranked = upstream_nodes(nodes, [LOGITS])
        best = helper.make_node("ArgMax", [LOGITS], [CLASSES], name=CLASSES, axis=1, keepdims=1)
        first = [nodes[index] for index in sorted(ranked)]
        replace_nodes(graph, [*first, best, *(node for index, node in enumerate(nodes) if index not in ranked)])
        drop(graph.input, {TARGETS})
        add_constant(graph, TARGETS, np.array([[-1]], dtype=np.int64))  # only its size is used
        return
    for index, node in enumerate(nodes):  # `targets` has a row per image: the graph need not repeat a single row
        if node.op_type == "Gather" and node.input[0] == TARGETS and _axis(node) == 0:
            nodes[index] = helper.make_node("Identity", [TARGETS], node.output, name=node.name)
    replace_nodes(graph, nodes)


def _ablate(graph: GraphProto, ablation: LinearAblation) -> None:
    """Compute the scores without each channel, `[N, c, K]`, from the logits and the layer's means."""
    place = f"{_PLACE}/ablation/{ablation.number}"
    names = {step: f"{place}/{step}" for step in ("means", "rows", "shares", "chosen", "column", "difference")}
    last, positions = add_constant(graph, f"{place}/last", [2]), add_constant(graph, f"{place}/positions", [2, 3])
    middle = add_constant(graph, f"{place}/middle", [1])
    flat_means = f"{place}/flat_means"
    steps = [
        helper.make_node("ReduceMean", [ablation.features, positions], [flat_means], name=flat_means, keepdims=0),
        helper.make_node("Unsqueeze", [flat_means, last], [names["means"]], name=names["means"]),
        helper.make_node("Transpose", [LOGIT_COTANGENTS], [names["rows"]], name=names["rows"], perm=[0, 2, 1]),
        helper.make_node("Mul", [names["means"], names["rows"]], [names["shares"]], name=names["shares"]),
        helper.make_node("GatherElements", [LOGITS, CLASSES], [names["chosen"]], name=names["chosen"], axis=1),
        helper.make_node("Unsqueeze", [names["chosen"], middle], [names["column"]], name=names["column"]),
        helper.make_node("Sub", [names["column"], names["shares"]], [names["difference"]], name=names["difference"]),
    ]
    nodes = [copied(node) for node in graph.node]
    for node in nodes:
        rename(node, {ablated_input(ablation.number): names["difference"]})
    before = upstream_nodes(nodes, [ablation.features, LOGIT_COTANGENTS, LOGITS, CLASSES])
    rest = [node for index, node in enumerate(nodes) if index not in before]
    replace_nodes(graph, [*(nodes[index] for index in sorted(before)), *steps, *rest])


def _multiply_matrices(graph: GraphProto) -> None:
    """Rewrite the weighted sums of channels as products of matrices, because few runtimes have `Einsum`."""
    place = f"{_PLACE}/sum"
    flat, kept = add_constant(graph, f"{place}/flat", [0, 0, -1]), add_constant(graph, f"{place}/kept", [0, 0])
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type != "Einsum" or node.attribute[0].s.decode().replace(" ", "") != _WEIGHTED_SUM:
            nodes.append(node)
            continue
        (weights, activations), (output,) = node.input, node.output
        matrix, product, extent, shape = (f"{output}/{step}" for step in ("matrix", "product", "extent", "shape"))
        nodes += [
            helper.make_node("Reshape", [activations, flat], [matrix], name=matrix),
            helper.make_node("MatMul", [weights, matrix], [product], name=product),
            helper.make_node("Shape", [activations], [extent], name=extent, start=2, end=4),
            helper.make_node("Concat", [kept, extent], [shape], name=shape, axis=0),
            helper.make_node("Reshape", [product, shape], [output], name=node.name),
        ]
    replace_nodes(graph, nodes)


def _keep_outputs(graph: GraphProto, names: Sequence[str]) -> None:
    """Keep these outputs, in this order, and the nodes, weights and inputs from which they are computed."""
    outputs = {output.name: output for output in graph.output}
    kept = []
    for name in names:
        value = type(outputs[name])()
        value.CopyFrom(outputs[name])
        kept.append(value)
    del graph.output[:]
    graph.output.extend(kept)
    used = upstream_nodes(graph.node, names)
    replace_nodes(graph, [node for index, node in enumerate(graph.node) if index in used])
    needed = {name for node in with_inner(graph.node) for name in node.input}
    weights = [copied(weight) for weight in graph.initializer if weight.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    drop(graph.input, {value.name for value in graph.input if value.name not in needed})


def _require_plain(graph: GraphProto) -> None:
    """Raise an error if the graph has control flow or an input besides images and targets."""
    if flow := sorted({node.op_type for node in with_inner(graph.node)} & _CONTROL_FLOW):
        raise ExportError(
            f"the network's own graph has the operators {', '.join(flow)}, which a plain graph cannot contain: leave --plain out"
        )
    extra = sorted({value.name for value in graph.input} - {IMAGES, TARGETS})
    if any(name.startswith("ablation/") for name in extra):
        raise ExportError(
            "ablationcam needs a loop unless the layer is the last one and the head is one linear layer on its spatial mean: leave it out"
            " of --plain"
        )
    if extra:
        raise ExportError(f"the graph needs the inputs {', '.join(extra)}, which a plain graph does not have: leave --plain out")


def _fold(model: ModelProto) -> None:
    """Evaluate small constants, such as shapes, in place."""
    from onnxscript import optimizer

    folded = optimizer.optimize(
        model,
        onnx_shape_inference=True,
        input_size_limit=_FOLDED_BYTES,
        output_size_limit=_FOLDED_BYTES,
    )
    model.CopyFrom(folded)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{index}"


def _axis(node: NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)


def _is_computed(nodes: Collection[NodeProto], name: str) -> bool:
    return any(name in node.output for node in nodes)
