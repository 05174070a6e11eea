"""Gradient rules of operators that select or replace elements by indices, which may depend on the images.

The operator itself, applied to the numbers of its elements instead of their values, tells from which element each element of its output
came. The gradient of an element is the sum of the gradients of all elements that came from it.
"""

from __future__ import annotations

import numpy as np

from tlcli.exports.onnx_source.gradients.gradient_flow import Rule, Step
from tlcli.exports.onnx_source.graph.node_writer import sizes


def selected(step: Step) -> None:
    """Contribute the gradient of an operator that selects elements of its first input by its second input."""
    numbers, count = _numbers(step, step.node.input[0])
    origins = step.op(step.node.op_type, numbers, step.node.input[1], **step.attributes)
    step.give(0, _returned(step, origins, count, step.node.input[0]))


def _top_k(step: Step) -> None:
    x = step.node.input[0]
    _, indices = step.writer.ops("TopK", x, step.node.input[1], outputs=2, **step.attributes)
    numbers, count = _numbers(step, x)
    origins = step.op("GatherElements", numbers, indices, axis=step.axis(-1, step.extent.rank))
    step.give(0, _returned(step, origins, count, x))


def _scatter(step: Step) -> None:
    """Contribute to the elements that were kept, and to those that replaced others."""
    if step.attributes.get("reduction", b"none") != b"none":
        raise NotImplementedError(f"reduction {step.attributes['reduction'].decode()}")
    data, indices, updates = step.node.input[:3]
    kept, first = _numbers(step, data)
    added, second = _numbers(step, updates)
    count = step.op("Add", first, second)
    origins = step.op(step.node.op_type, kept, indices, step.op("Add", added, first), **step.attributes)
    gradients = _summed_rows(step, origins, count)
    for index, begin, end in ((0, sizes(0), first), (2, first, count)):
        if step.needs(index):
            rows = step.op("Slice", gradients, begin, end, sizes(0))
            step.give(index, step.rows.from_rows(rows, step.extent_of(index)))


def _numbers(step: Step, value: str) -> tuple[str, str]:
    """Return the numbers of a value's elements in their order, in its shape, and their count, int64 `[1]`."""
    count = step.op("Reshape", step.op("Size", value), sizes(1))
    numbers = step.op("Range", np.array(0), step.op("Size", value), np.array(1))
    return step.op("Reshape", numbers, step.op("Shape", value)), count


def _returned(step: Step, origins: str, count: str, value: str) -> str:
    """Return the output's gradient to the elements of a value."""
    return step.rows.from_rows(_summed_rows(step, origins, count), step.flow.graph.extents[value])


def _summed_rows(step: Step, origins: str, count: str) -> str:
    """Add the rows of the output's gradient by the numbers of their origins. Return one row per number, `[count, K]`."""
    rows = step.rows.to_rows(step.gradient, step.extent)
    blank = step.op("Expand", 0.0, step.op("Concat", count, step.rows.count, axis=0))
    return step.op("ScatterND", blank, step.op("Reshape", origins, sizes(-1, 1)), rows, reduction="add")


def _trilu(step: Step) -> None:
    """Contribute the gradient of the triangle that was kept."""
    if step.extent.batch >= step.extent.rank - 2:
        raise NotImplementedError("an axis along the batch")
    offset = [step.node.input[1]] if step.input(1) is not None else []
    step.give(0, step.op("Trilu", step.gradient, *offset, **step.attributes))


def _cumulative_sum(step: Step) -> None:
    """Contribute the cumulative sum of the gradient in the other direction."""
    axis = int(step.required(1, "an axis").reshape(())) % step.extent.rank
    if axis == step.extent.batch:
        raise NotImplementedError("an axis along the batch")
    direction = 1 - step.attributes.get("reverse", 0)
    step.give(0, step.op("CumSum", step.gradient, np.array(axis), exclusive=step.attributes.get("exclusive", 0), reverse=direction))


SELECTION_RULES: dict[str, Rule] = {
    "GatherElements": selected,
    "GatherND": selected,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "TopK": _top_k,
    "Trilu": _trilu,
    "CumSum": _cumulative_sum,
}
