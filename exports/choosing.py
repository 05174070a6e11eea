"""What is explained, a logit or a probability, as an ONNX `If`: the competition of the classes costs only those who ask for it.

PyTorch's exporter writes both, and takes the choice as an extra input. Here the choice becomes the `If`'s output.
"""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from contract.description import CLASSES, LOGITS, SCORES, SOFTMAX, TARGETS

CHOSEN = "cotangents"
"""Name of the extra input: float32 `[N, K, d]`, dy/dz for the embedding z."""

OF_LOGITS, OF_PROBABILITIES = f"{CHOSEN}/of_logits", f"{CHOSEN}/of_probabilities"
"""Names of the two outputs that it is one of."""

_MANY_CLASSES = 100


def close_choice(graph: GraphProto) -> None:
    """Put an `If` on `softmax` in the place of `CHOSEN`; `graph` is flat, and rewritten in place."""
    producer = {name: number for number, node in enumerate(graph.node) for name in node.output}

    def behind(names: list[str]) -> set[int]:
        found: set[int] = set()
        waiting = list(names)
        while waiting:
            number = producer.get(waiting.pop())
            if number is not None and number not in found:
                found.add(number)
                waiting.extend(graph.node[number].input)
        return found

    before = behind([OF_LOGITS, SCORES, LOGITS, CLASSES])
    inside = [NodeProto.FromString(graph.node[number].SerializeToString()) for number in sorted(behind([OF_PROBABILITIES]) - before)]
    names = {name: f"{CHOSEN}/{name}" for node in inside for name in node.output}
    for node in inside:  # what others take of it is computed there too: sizes and rows
        node.name = f"{CHOSEN}/{node.name}"
        for field in (node.input, node.output):
            renamed = [names.get(name, name) for name in field]
            del field[:]
            field.extend(renamed)
    choice = helper.make_node(
        "If",
        [f"{CHOSEN}/any"],
        [CHOSEN],
        name=CHOSEN,
        then_branch=helper.make_graph(
            inside, f"{CHOSEN}/then", [], [helper.make_tensor_value_info(names[OF_PROBABILITIES], TensorProto.FLOAT, [None] * 3)]
        ),
        else_branch=helper.make_graph(
            [helper.make_node("Identity", [OF_LOGITS], [f"{CHOSEN}/same"], name=f"{CHOSEN}/same")],
            f"{CHOSEN}/else",
            [],
            [helper.make_tensor_value_info(f"{CHOSEN}/same", TensorProto.FLOAT, [None] * 3)],
        ),
    )
    asked = helper.make_node("ReduceMax", [SOFTMAX], [f"{CHOSEN}/any"], name=f"{CHOSEN}/any", keepdims=0)
    others = behind([output.name for output in graph.output if output.name != OF_PROBABILITIES]) - before
    first = [NodeProto.FromString(graph.node[number].SerializeToString()) for number in sorted(before)]
    last = [NodeProto.FromString(graph.node[number].SerializeToString()) for number in sorted(others)]
    del graph.node[:]
    graph.node.extend([*first, asked, choice, *last])
    for values, gone in ((graph.input, {CHOSEN}), (graph.output, {OF_LOGITS, OF_PROBABILITIES})):
        kept = [value for value in values if value.name not in gone]
        del values[:]
        values.extend(kept)


def rank_as_far_as_asked(graph: GraphProto, classes: int) -> None:
    """Let the ranking of the classes end with the last rank that `targets` asks for, where a whole one would cost."""
    if classes < _MANY_CLASSES:
        return
    (ranking,) = (number for number, node in enumerate(graph.node) if node.op_type == "TopK" and node.input[1])
    place = "ranks"

    def constant(name: str, value: object) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.int64), f"{place}/{name}"))
        return f"{place}/{name}"

    steps = [
        helper.make_node("ReduceMin", [TARGETS], [f"{place}/lowest"], keepdims=0, name=f"{place}/lowest"),
        helper.make_node("Neg", [f"{place}/lowest"], [f"{place}/asked"], name=f"{place}/asked"),
        helper.make_node("Max", [f"{place}/asked", constant("one", [1])], [f"{place}/some"], name=f"{place}/some"),
        helper.make_node("Min", [f"{place}/some", constant("all", [classes])], [f"{place}/count"], name=f"{place}/count"),
    ]
    graph.node[ranking].input[1] = f"{place}/count"
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in (*steps, *graph.node)]
    del graph.node[:]
    graph.node.extend(nodes)
