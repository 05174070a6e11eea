"""Ablation-CAM as an ONNX `Loop`, which computes the scores without each channel of a layer, a few channels per step.

PyTorch's exporter writes a single step into the graph, as a function of an extra input: the indices of the (image, channel) pairs that the
step processes. This pass moves the nodes that depend on that input into the body of a loop. Weights stay outside the loop, and are shared.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import GraphProto, TensorProto, helper

from tlcli.exports.rewrite.graph_edit import add_constant, downstream_nodes, drop, replace_nodes, upstream_nodes

LOOPED_METHODS = frozenset({"ablationcam"})
"""Map methods that a loop computes, because they run the part of the network after the layer once per channel."""

CHANNELS_PER_STEP = 32
"""Number of channels per step, and thus the number of copies of a layer's activations in memory at a time."""


def due_input(layer: int) -> str:
    """Return the name of the extra input, int64 `[CHANNELS_PER_STEP]`, which holds each pair as `image * c + channel`."""
    return f"ablation/{layer}/due"


def step_output(layer: int) -> str:
    """Return the name of the step's output, float32 `[CHANNELS_PER_STEP, K]`, which holds the scores without these channels."""
    return f"ablation/{layer}/step"


def ablated_input(layer: int) -> str:
    """Return the name of the input that the loop's result replaces, float32 `[N, c, K]`, which holds the scores of all steps."""
    return f"ablation/{layer}/ablated"


def close_loop(graph: GraphProto, layer: int, features: str, channels: int, classes: str) -> None:
    """Turn the step into a loop over all channels of all images, and replace the input `ablated_input` with the loop's result.

    Args:
        graph: graph that contains one step as ordinary nodes; modified in place.
        layer: index of the layer.
        features: name of the output with the layer's activations, `[N, c, h, w]`.
        channels: number of channels, c.
        classes: name of the output with the explained classes, `[N, K]`.
    """
    due, step, ablated = due_input(layer), step_output(layer), ablated_input(layer)
    nodes = list(graph.node)
    body = downstream_nodes(nodes, due) & upstream_nodes(nodes, [step])
    users = downstream_nodes(nodes, ablated)
    place = f"ablation/{layer}"

    def constant(name: str, value: int | Sequence[int]) -> str:
        return add_constant(graph, f"{place}/{name}", value)

    one, zero, size = constant("one", 1), constant("zero", 0), constant("size", CHANNELS_PER_STEP)
    first, c = constant("first", [0]), constant("channels", [channels])
    before = [
        helper.make_node("Shape", [features], [f"{place}/images"], start=0, end=1),
        helper.make_node("Mul", [f"{place}/images", c], [f"{place}/pairs"]),
        helper.make_node("Squeeze", [f"{place}/pairs"], [f"{place}/count"]),
        helper.make_node("Sub", [f"{place}/count", one], [f"{place}/last"]),
        helper.make_node("Div", [f"{place}/last", size], [f"{place}/full_steps"]),
        helper.make_node("Add", [f"{place}/full_steps", one], [f"{place}/steps"]),
        helper.make_node("Range", [zero, size, one], [f"{place}/range"]),
        helper.make_node("Shape", [classes], [f"{place}/explained"], start=1, end=2),
    ]
    inside = [
        helper.make_node("Mul", [f"{place}/number", size], [f"{place}/start"]),
        helper.make_node("Add", [f"{place}/range", f"{place}/start"], [f"{place}/beyond"]),
        helper.make_node("Min", [f"{place}/beyond", f"{place}/last"], [due]),  # fills the last step by repeating the last pair
        helper.make_node("Identity", [f"{place}/going"], [f"{place}/goes_on"]),
        *(nodes[number] for number in sorted(body)),
    ]
    after = [
        helper.make_node("Concat", [constant("rest", [-1]), f"{place}/explained"], [f"{place}/flat_shape"], axis=0),
        helper.make_node("Reshape", [f"{place}/all", f"{place}/flat_shape"], [f"{place}/flat"]),
        helper.make_node("Slice", [f"{place}/flat", first, f"{place}/pairs"], [f"{place}/used"]),
        helper.make_node("Concat", [f"{place}/images", c, f"{place}/explained"], [f"{place}/shape"], axis=0),
        helper.make_node("Reshape", [f"{place}/used", f"{place}/shape"], [ablated]),
    ]
    for number, node in enumerate(before + inside[:4] + after):
        node.name = f"{place}/node_{number}"
    loop = helper.make_node(
        "Loop",
        [f"{place}/steps", ""],
        [f"{place}/all"],
        name=f"{place}/loop",
        body=helper.make_graph(
            inside,
            f"{place}/body",
            [
                helper.make_tensor_value_info(f"{place}/number", TensorProto.INT64, []),
                helper.make_tensor_value_info(f"{place}/going", TensorProto.BOOL, []),
            ],
            [
                helper.make_tensor_value_info(f"{place}/goes_on", TensorProto.BOOL, []),
                helper.make_tensor_value_info(step, TensorProto.FLOAT, [CHANNELS_PER_STEP, None]),
            ],
        ),
    )
    rest = (number for number in range(len(nodes)) if number not in body | users)
    replace_nodes(graph, [*(nodes[number] for number in rest), *before, loop, *after, *(nodes[number] for number in sorted(users))])
    drop(graph.input, {due, ablated})
    drop(graph.output, {step})
