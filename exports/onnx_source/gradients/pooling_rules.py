"""Gradient rules of pooling and of reductions over axes."""

from __future__ import annotations

import math

import numpy as np

from tlcli.exports.onnx_source.gradients.class_rows import Factor
from tlcli.exports.onnx_source.gradients.elementwise_rules import FLOAT
from tlcli.exports.onnx_source.gradients.gradient_flow import Rule, Step
from tlcli.exports.onnx_source.gradients.linear_rules import explicit_pads, spread
from tlcli.exports.onnx_source.graph.extents import Extent
from tlcli.exports.onnx_source.graph.node_writer import sizes


def reduced_axes(step: Step) -> list[int]:
    """Return the axes of a reduction.

    Raises:
        NotImplementedError: the axes are not constant, or include the batch.
    """
    rank = step.extent_of(0).rank
    given = step.input(1) is not None
    values = step.required(1, "axes").ravel().tolist() if given else []
    if not values and step.attributes.get("noop_with_empty_axes", 0):
        return []
    axes = sorted(int(axis) % rank for axis in values) or list(range(rank))
    if step.extent_of(0).batch in axes:
        raise NotImplementedError("a reduction along the batch")
    return axes


def _kept(step: Step, axes: list[int]) -> tuple[str, Extent]:
    """Return the gradient with reduced axes of size 1, and its extent."""
    source = step.extent_of(0)
    extent = Extent(tuple(1 if axis in axes else size for axis, size in enumerate(source.dims)), source.batch)
    return (step.gradient if extent == step.extent else step.rows.merge(step.gradient, extent)), extent


def _repeated(step: Step, axes: list[int], factor: float) -> None:
    """Contribute the gradient times a number to every reduced position."""
    gradient, _ = _kept(step, axes)
    source = step.extent_of(0)
    shape = [size if axis in axes else 1 for axis, size in enumerate(source.dims)]
    step.give(0, step.op("Mul", gradient, np.full(shape, factor, dtype=np.float32)))


def _spatial_axes(step: Step) -> list[int]:
    return list(range(2, step.extent_of(0).rank))


def _positions(step: Step, axes: list[int]) -> int:
    return math.prod(step.extent_of(0).dims[axis] for axis in axes)


def _reduce_mean(step: Step) -> None:
    axes = reduced_axes(step)
    _repeated(step, axes, 1 / _positions(step, axes))


def _weighted_positions(step: Step, axes: list[int], factor: str) -> None:
    """Contribute the gradient times a value of the input's extent."""
    gradient, _ = _kept(step, axes)
    source = step.extent_of(0)
    shape = [size if axis in axes else 1 for axis, size in enumerate(source.dims)]
    repeated = step.op("Mul", gradient, np.ones(shape, dtype=np.float32))
    step.give(0, step.rows.combine("Mul", repeated, source, Factor(factor, source)))


def _first_extremum(step: Step, axes: list[int], largest: bool) -> None:
    """Contribute the gradient to the first largest or smallest position of the reduced axes."""
    source = step.extent_of(0)
    if axes != list(range(axes[0], axes[-1] + 1)):
        raise NotImplementedError("axes that are not adjacent")
    positions = _positions(step, axes)
    dims = [-1 if axis == source.batch else size for axis, size in enumerate(source.dims)]
    flat = [*dims[: axes[0]], positions, *dims[axes[-1] + 1 :]]
    x = step.op("Reshape", step.node.input[0], sizes(*flat))
    first = step.op("ArgMax" if largest else "ArgMin", x, axis=axes[0], keepdims=1)
    numbers = sizes(*range(positions)).reshape(-1, *[1] * (len(flat) - axes[0] - 1))
    mask = step.op("Cast", step.op("Equal", first, numbers), to=FLOAT)
    _weighted_positions(step, axes, step.op("Reshape", mask, sizes(*dims)))


def _reduce_l2(step: Step) -> None:
    axes = reduced_axes(step)
    norm = step.op("Sqrt", step.op("ReduceSumSquare", step.node.input[0], sizes(*axes), keepdims=1))
    _weighted_positions(step, axes, step.op("Div", step.node.input[0], step.op("Where", step.op("Equal", norm, 0.0), 1.0, norm)))


def _reduce_log_sum_exp(step: Step) -> None:
    axes = reduced_axes(step)
    result = step.op("ReduceLogSumExp", step.node.input[0], sizes(*axes), keepdims=1)
    _weighted_positions(step, axes, step.op("Exp", step.op("Sub", step.node.input[0], result)))


def _max_pool(step: Step) -> None:
    """Add each window's gradient to the position of its first maximum. The positions are computed here, not in the forward pass."""
    source = step.extent_of(0)
    if source.batch != 0 or step.attributes.get("storage_order", 0):
        raise NotImplementedError("the batch on another axis, or storage_order")
    rows, channels = source.dims[:2]
    positions_in, windows = math.prod(source.dims[2:]), math.prod(step.extent.dims[2:])
    _, largest = step.writer.ops("MaxPool", step.node.input[0], outputs=2, **step.attributes)
    inside = step.op("Reshape", step.op("Mod", largest, sizes(positions_in)), sizes(-1, 1, rows, channels, windows))
    times = step.op("Concat", sizes(1), step.rows.count, sizes(1, 1, 1), axis=0)
    positions = step.op("Reshape", step.op("Expand", inside, times), sizes(-1, channels, windows))
    gradient = step.op("Reshape", step.gradient, sizes(-1, channels, windows))
    images = step.op("Concat", step.op("Shape", gradient, start=0, end=1), sizes(1, 1), axis=0)
    blank = step.op("Expand", np.zeros((1, channels, positions_in), dtype=np.float32), images)
    added = step.op("ScatterElements", blank, positions, gradient, axis=2, reduction="add")
    step.give(0, step.rows.merge(added, source))


def _average_pool(step: Step) -> None:
    """Distribute each window's gradient equally over its positions."""
    source = step.extent_of(0)
    kernel, strides, dilations, pads = _windows(step, source)
    include = bool(step.attributes.get("count_include_pad", 0))
    counts = np.ones((), dtype=np.float64)
    for axis, size in enumerate(source.dims[2:]):
        counts = np.multiply.outer(counts, _window_counts(step, axis, size, kernel, strides, dilations, pads, include))
    step.give(0, _over_windows(step, step.op("Mul", step.gradient, (1 / counts).astype(np.float32)), source))


def _lp_pool(step: Step) -> None:
    """Contribute `y^(1 - p) sign(x) |x|^(p - 1)` times the gradient of each window, `y = (sum |x|^p)^(1 / p)`."""
    source = step.extent_of(0)
    shares = step.rows.combine("Mul", step.gradient, step.extent, Factor(_norm_power(step), step.extent))
    spread_shares = _over_windows(step, shares, source)
    step.give(0, step.rows.combine("Mul", spread_shares, source, Factor(_slope_of_power(step), source)))


def _global_lp_pool(step: Step) -> None:
    _weighted_positions(step, _spatial_axes(step), step.op("Mul", _slope_of_power(step), _norm_power(step)))


def _norm_power(step: Step) -> str:
    """Return `y^(1 - p)` of the output y, and 0 where y is 0."""
    zero = step.op("Equal", step.output, 0.0)
    power = step.op("Pow", step.op("Where", zero, 1.0, step.output), float(1 - step.attributes.get("p", 2)))
    return step.op("Where", zero, 0.0, power)


def _slope_of_power(step: Step) -> str:
    """Return `sign(x) |x|^(p - 1)` of the input x."""
    x = step.node.input[0]
    return step.op("Mul", step.op("Sign", x), step.op("Pow", step.op("Abs", x), float(step.attributes.get("p", 2) - 1)))


def _windows(step: Step, source: Extent) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return the kernel, strides, dilations and pads of a pooling operator."""
    if source.batch != 0:
        raise NotImplementedError("the batch on another axis")
    kernel = list(step.attributes["kernel_shape"])
    strides = step.attributes.get("strides", [1] * len(kernel))
    dilations = step.attributes.get("dilations", [1] * len(kernel))
    return kernel, strides, dilations, explicit_pads(step, kernel, strides, dilations, source)


def _over_windows(step: Step, shares: str, source: Extent) -> str:
    """Add a number per window to all positions of the window, by a transposed convolution of each channel with ones."""
    kernel, strides, dilations, pads = _windows(step, source)
    single = step.op("Reshape", shares, sizes(-1, 1, *step.extent.dims[2:]))
    ones = np.ones((1, 1, *kernel), dtype=np.float32)
    return step.rows.merge(spread(step, single, ones, kernel, strides, dilations, pads, source), source)


def _window_counts(
    step: Step, axis: int, size: int, kernel: list[int], strides: list[int], dilations: list[int], pads: list[int], include: bool
) -> np.ndarray:
    """Return the number of positions that each window along an axis averages over."""
    begin, end = pads[axis], pads[axis + len(kernel)]
    starts = np.arange(step.extent.dims[2 + axis])[:, None] * strides[axis] - begin
    positions = starts + np.arange(kernel[axis])[None] * dilations[axis]
    low, high = (-begin, size + end) if include else (0, size)
    counts: np.ndarray = ((positions >= low) & (positions < high)).sum(1)
    return counts


POOLING_RULES: dict[str, Rule] = {
    "GlobalAveragePool": lambda step: _repeated(step, _spatial_axes(step), 1 / _positions(step, _spatial_axes(step))),
    "GlobalMaxPool": lambda step: _first_extremum(step, _spatial_axes(step), largest=True),
    "ReduceMean": _reduce_mean,
    "ReduceSum": lambda step: _repeated(step, reduced_axes(step), 1.0),
    "ReduceMax": lambda step: _first_extremum(step, reduced_axes(step), largest=True),
    "ReduceMin": lambda step: _first_extremum(step, reduced_axes(step), largest=False),
    "ReduceL2": _reduce_l2,
    "ReduceLogSumExp": _reduce_log_sum_exp,
    "ReduceSumSquare": lambda step: _weighted_positions(step, reduced_axes(step), step.op("Mul", step.node.input[0], 2.0)),
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LpPool": _lp_pool,
    "GlobalLpPool": _global_lp_pool,
}
