"""Loops over (image, item) pairs as an ONNX `Loop`, where an item is a channel or a position of a layer, a few pairs per step.

PyTorch's exporter writes a single step into the graph, as a function of an extra input: the indices of the pairs that the step processes.
This pass moves the nodes that depend on that input into the body of a loop. Weights stay outside the loop, and are shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import GraphProto, NodeProto, TensorProto, helper

from tlcli.exports.rewrite.graph_edit import add_constant, downstream_nodes, drop, replace_nodes, upstream_nodes

PAIRS_PER_STEP = 32
"""Number of pairs per step, and thus the number of copies of a layer's activations in memory at a time."""


@dataclass(frozen=True)
class PairLoop:
    """Names of the extra inputs and the output of a step.

    place: prefix of the loop's nodes and values.
    due: extra input, int64 `[PAIRS_PER_STEP]`, which holds each pair as `image * items + item`.
    step: output of the step, float32 `[PAIRS_PER_STEP, K]`, which holds the scores of these pairs.
    result: extra input that the loop's result replaces, float32 `[N, items, K]`, which holds the scores of all pairs.
    """

    place: str
    due: str
    step: str
    result: str


def close_pair_loop(graph: GraphProto, loop: PairLoop, features: str, axes: tuple[int, int] | int, classes: str) -> None:
    """Turn the step into a loop over all items of all images, and replace the input `loop.result` with the loop's result.

    Args:
        graph: graph that contains one step as ordinary nodes; modified in place.
        loop: names of the step's inputs and output.
        features: name of the output with the layer's activations, `[N, c, h, w]`.
        axes: the two axes of the activations whose sizes' product is the number of items per image, or that number.
        classes: name of the output with the explained classes, `[N, K]`.
    """
    due, step, result, place = loop.due, loop.step, loop.result, loop.place
    nodes = list(graph.node)
    body = downstream_nodes(nodes, due) & upstream_nodes(nodes, [step])
    users = downstream_nodes(nodes, result)

    def constant(name: str, value: int | Sequence[int]) -> str:
        return add_constant(graph, f"{place}/{name}", value)

    one, zero, size = constant("one", 1), constant("zero", 0), constant("size", PAIRS_PER_STEP)
    first = constant("first", [0])
    counting: list[NodeProto] = []
    if isinstance(axes, int):
        items = constant("items", [axes])
    else:
        items = f"{place}/items"
        sizes = [f"{place}/size_{axis}" for axis in axes]
        counting = [
            *(helper.make_node("Shape", [features], [value], start=axis, end=axis + 1) for axis, value in zip(axes, sizes, strict=True)),
            helper.make_node("Mul", sizes, [items]),
        ]
    before = [
        *counting,
        helper.make_node("Shape", [features], [f"{place}/images"], start=0, end=1),
        helper.make_node("Mul", [f"{place}/images", items], [f"{place}/pairs"]),
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
        helper.make_node("Concat", [f"{place}/images", items, f"{place}/explained"], [f"{place}/shape"], axis=0),
        helper.make_node("Reshape", [f"{place}/used", f"{place}/shape"], [result]),
    ]
    for number, node in enumerate(before + inside[:4] + after):
        node.name = f"{place}/node_{number}"
    ports = [
        helper.make_tensor_value_info(f"{place}/number", TensorProto.INT64, []),
        helper.make_tensor_value_info(f"{place}/going", TensorProto.BOOL, []),
        helper.make_tensor_value_info(f"{place}/goes_on", TensorProto.BOOL, []),
        helper.make_tensor_value_info(step, TensorProto.FLOAT, [PAIRS_PER_STEP, None]),
    ]
    repeated = helper.make_graph(inside, f"{place}/body", ports[:2], ports[2:])
    node = helper.make_node("Loop", [f"{place}/steps", ""], [f"{place}/all"], name=f"{place}/loop", body=repeated)
    rest = (number for number in range(len(nodes)) if number not in body | users)
    replace_nodes(graph, [*(nodes[number] for number in rest), *before, node, *after, *(nodes[number] for number in sorted(users))])
    drop(graph.input, {due, result})
    drop(graph.output, {step})
