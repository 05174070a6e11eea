"""Choice between explaining logits and probabilities, as an ONNX `If`. Only requests for probabilities compute the softmax's gradient.

The graph from PyTorch's exporter has both cotangents as outputs, and the chosen one as an extra input. This pass replaces the extra input
with the output of the `If`.
"""

from __future__ import annotations

from onnx import GraphProto, TensorProto, helper

from tlcli.contract.model.description import CLASSES, LOGITS, SCORES, SOFTMAX, TARGETS
from tlcli.exports.rewrite.graph_edit import add_constant, copied, drop, rename, replace_nodes, upstream_nodes

COTANGENTS = "cotangents"
"""Name of the extra input, float32 `[N, K, d]`, which holds dy/dz for the embedding z."""

LOGIT_COTANGENTS, PROBABILITY_COTANGENTS = f"{COTANGENTS}/of_logits", f"{COTANGENTS}/of_probabilities"
"""Names of the two outputs between which the `If` chooses."""

_MANY_CLASSES = 100


def close_choice(graph: GraphProto) -> None:
    """Replace the input `COTANGENTS` with an `If` on `softmax`. The graph must be flat, and is modified in place."""
    nodes = list(graph.node)
    before = upstream_nodes(nodes, [LOGIT_COTANGENTS, SCORES, LOGITS, CLASSES])
    inside = [copied(nodes[number]) for number in sorted(upstream_nodes(nodes, [PROBABILITY_COTANGENTS]) - before)]
    names = {name: f"{COTANGENTS}/{name}" for node in inside for name in node.output}
    for node in inside:  # nodes outside the branch also use some of these values (sizes and rows), and keep the original nodes
        rename(node, names, f"{COTANGENTS}/")
    choice = helper.make_node(
        "If",
        [f"{COTANGENTS}/any"],
        [COTANGENTS],
        name=COTANGENTS,
        then_branch=helper.make_graph(
            inside, f"{COTANGENTS}/then", [], [helper.make_tensor_value_info(names[PROBABILITY_COTANGENTS], TensorProto.FLOAT, [None] * 3)]
        ),
        else_branch=helper.make_graph(
            [helper.make_node("Identity", [LOGIT_COTANGENTS], [f"{COTANGENTS}/same"], name=f"{COTANGENTS}/same")],
            f"{COTANGENTS}/else",
            [],
            [helper.make_tensor_value_info(f"{COTANGENTS}/same", TensorProto.FLOAT, [None] * 3)],
        ),
    )
    condition = helper.make_node("ReduceMax", [SOFTMAX], [f"{COTANGENTS}/any"], name=f"{COTANGENTS}/any", keepdims=0)
    others = upstream_nodes(nodes, [output.name for output in graph.output if output.name != PROBABILITY_COTANGENTS]) - before
    first, last = ([nodes[number] for number in sorted(numbers)] for numbers in (before, others))
    replace_nodes(graph, [*first, condition, choice, *last])
    drop(graph.input, {COTANGENTS})
    drop(graph.output, {LOGIT_COTANGENTS, PROBABILITY_COTANGENTS})


def limit_ranking(graph: GraphProto, classes: int) -> None:
    """Limit the ranking of the classes to the lowest rank in `targets`.

    Networks with fewer than 100 classes are not modified, because ranking all classes then takes little time.
    """
    if classes < _MANY_CLASSES:
        return
    (ranking,) = (number for number in upstream_nodes(graph.node, [CLASSES]) if graph.node[number].op_type == "TopK")
    place = "ranks"
    one, total = add_constant(graph, f"{place}/one", [1]), add_constant(graph, f"{place}/all", [classes])

    steps = [
        helper.make_node("ReduceMin", [TARGETS], [f"{place}/lowest"], keepdims=0, name=f"{place}/lowest"),
        helper.make_node("Neg", [f"{place}/lowest"], [f"{place}/asked"], name=f"{place}/asked"),
        helper.make_node("Max", [f"{place}/asked", one], [f"{place}/some"], name=f"{place}/some"),
        helper.make_node("Min", [f"{place}/some", total], [f"{place}/count"], name=f"{place}/count"),
    ]
    graph.node[ranking].input[1] = f"{place}/count"
    replace_nodes(graph, [*steps, *graph.node])
