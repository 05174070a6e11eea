"""Gradient rules of operators that only move elements: reshapes, transposes, joins and selections."""

from __future__ import annotations

import numpy as np

from tlcli.exports.onnx_source.gradients.gradient_flow import Rule, Step
from tlcli.exports.onnx_source.gradients.selection_rules import selected
from tlcli.exports.onnx_source.graph.extents import Extent
from tlcli.exports.onnx_source.graph.node_writer import sizes


def _reshape(step: Step) -> None:
    target = step.extent_of(0)
    if target.before != step.extent.before:
        raise NotImplementedError("a reshape that mixes images")
    step.give(0, step.rows.merge(step.gradient, target))


def _transpose(step: Step) -> None:
    perm = step.attributes.get("perm", list(reversed(range(step.extent.rank))))
    step.give(0, step.op("Transpose", step.gradient, perm=[int(axis) for axis in np.argsort(perm)]))


def _concat(step: Step) -> None:
    axis = other_axis(step, step.axis(0, step.extent.rank))
    start = 0
    for index, name in enumerate(step.node.input):
        constant = step.constant(index)
        size = constant.shape[axis] if constant is not None else step.flow.graph.extents[name].dims[axis]
        if step.needs(index):
            step.give(index, step.op("Slice", step.gradient, sizes(start), sizes(start + size), sizes(axis)))
        start += size


def _split(step: Step) -> None:
    axis = other_axis(step, step.axis(0, step.extent.rank))
    extents = [step.flow.graph.extents[name] for name in step.node.output]
    before = sum(extent.dims[axis] for extent in extents[: step.number])
    after = sum(extent.dims[axis] for extent in extents[step.number + 1 :])
    step.give(0, _padded(step, step.gradient, {axis: (before, after)}))


def _padded(step: Step, gradient: str, pads: dict[int, tuple[int, int]]) -> str:
    """Pad a gradient with zeros."""
    rank = step.extent.rank
    begins, ends = ([pads.get(axis, (0, 0))[side] for axis in range(rank)] for side in (0, 1))
    return step.op("Pad", gradient, sizes(*begins, *ends), 0.0)


def _slice(step: Step) -> None:
    source = step.extent_of(0)
    starts, ends = step.required(1, "a start").ravel(), step.required(2, "an end").ravel()
    axes = step.required(3, "axes").ravel() if step.input(3) is not None else np.arange(len(starts))
    steps = step.required(4, "a step").ravel() if step.input(4) is not None else np.ones(len(starts), dtype=np.int64)
    gradient = step.gradient
    for start, end, axis, stride in zip(starts, ends, axes, steps, strict=True):
        axis = other_axis(step, int(axis) % source.rank)
        size = source.dims[axis]
        chosen = np.arange(size)[slice(int(start), _bound(int(end), size, int(stride)), int(stride))]
        gradient = _returned(step, gradient, chosen, size, axis)
    step.give(0, gradient)


def _bound(end: int, size: int, stride: int) -> int | None:
    """Return the end of a slice for Python, in which an end before the first element is None for negative steps."""
    return None if stride < 0 and end < -size else end


def _returned(step: Step, gradient: str, chosen: np.ndarray, size: int, axis: int) -> str:
    """Return the gradient of selected positions to their places among `size` positions.

    Raises:
        NotImplementedError: a position was selected twice.
    """
    if len(set(chosen.tolist())) != len(chosen):
        raise NotImplementedError("a repeated index")
    if np.array_equal(chosen, np.arange(size)):
        return gradient
    if len(chosen) and np.array_equal(chosen, np.arange(chosen[0], chosen[0] + len(chosen))):
        return _padded(step, gradient, {axis: (int(chosen[0]), size - int(chosen[-1]) - 1)})
    sources = np.full(size, len(chosen), dtype=np.int64)  # the index of a zero that is appended
    sources[chosen] = np.arange(len(chosen))
    return step.op("Gather", _padded(step, gradient, {axis: (0, 1)}), sources, axis=axis)


def _gather(step: Step) -> None:
    source = step.extent_of(0)
    axis = step.axis(0, source.rank)
    indices = step.constant(1)
    if axis == source.batch or indices is None:
        selected(step)
        return
    gradient = step.gradient
    if indices.ndim != 1:  # the axis was removed, or replaced by several
        flat = Extent((*source.dims[:axis], indices.size, *source.dims[axis + 1 :]), source.batch)
        gradient = step.rows.merge(gradient, flat)
    chosen = indices.ravel() % source.dims[axis]
    if len(set(chosen.tolist())) != len(chosen):
        step.give(0, _summed(step, gradient, chosen, source, axis))
        return
    sources = np.full(source.dims[axis], len(chosen), dtype=np.int64)
    sources[chosen] = np.arange(len(chosen))
    pads = [0] * (2 * source.rank)
    pads[source.rank + axis] = 1
    step.give(0, step.op("Gather", step.op("Pad", gradient, sizes(*pads), 0.0), sources, axis=axis))


def _summed(step: Step, gradient: str, chosen: np.ndarray, source: Extent, axis: int) -> str:
    """Return the gradient of positions of which some were selected several times, by a product with a matrix of zeros and ones."""
    perm = [number for number in range(source.rank) if number != axis] + [axis]
    matrix = (chosen[:, None] == np.arange(source.dims[axis])).astype(np.float32)
    product = step.op("MatMul", step.op("Transpose", gradient, perm=perm), matrix)
    return step.op("Transpose", product, perm=[int(number) for number in np.argsort(perm)])


def _depth_to_space(step: Step) -> None:
    block = step.attributes["blocksize"]
    if step.attributes.get("mode", b"DCR") == b"DCR":
        step.give(0, step.op("SpaceToDepth", step.gradient, blocksize=block))
        return
    _, channels, height, width = step.extent.dims
    blocks = step.op("Reshape", step.gradient, sizes(-1, channels, height // block, block, width // block, block))
    step.give(0, step.rows.merge(step.op("Transpose", blocks, perm=[0, 1, 3, 5, 2, 4]), step.extent_of(0)))


def _space_to_depth(step: Step) -> None:
    step.give(0, step.op("DepthToSpace", step.gradient, blocksize=step.attributes["blocksize"]))


def _pad(step: Step) -> None:
    if step.attributes.get("mode", b"constant") != b"constant":
        raise NotImplementedError(f"mode {step.attributes['mode'].decode()}")
    source = step.extent_of(0)
    pads = step.required(1, "pads").ravel()
    axes = [int(axis) % source.rank for axis in step.required(3, "axes").ravel()] if step.input(3) is not None else range(source.rank)
    starts, ends, used = [], [], []
    count = len(pads) // 2
    for number, axis in enumerate(axes):
        begin = int(pads[number])
        if begin or pads[number + count]:
            other_axis(step, axis)
            if begin < 0 or pads[number + count] < 0:
                raise NotImplementedError("negative pads")
            starts.append(begin)
            ends.append(begin + source.dims[axis])
            used.append(axis)
    step.give(0, step.op("Slice", step.gradient, sizes(*starts), sizes(*ends), sizes(*used)) if used else step.gradient)


def _expand(step: Step) -> None:
    step.give(0, step.rows.reduce_to(step.gradient, step.extent, step.extent_of(0)))


def other_axis(step: Step, axis: int) -> int:
    """Return the axis, if it is not that of the batch.

    Raises:
        NotImplementedError: it is.
    """
    if axis == step.extent.batch:
        raise NotImplementedError("an axis along the batch")
    return axis


SHAPE_RULES: dict[str, Rule] = {
    "Flatten": _reshape,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Expand": _expand,
}
