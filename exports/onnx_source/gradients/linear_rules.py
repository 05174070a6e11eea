"""Gradient rules of products with weights, convolutions and normalisations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tlcli.exports.onnx_source.gradients.class_rows import Factor
from tlcli.exports.onnx_source.gradients.einsum_rule import einsum
from tlcli.exports.onnx_source.gradients.gradient_flow import Rule, Step
from tlcli.exports.onnx_source.graph.extents import Extent
from tlcli.exports.onnx_source.graph.node_writer import sizes


def _gemm(step: Step) -> None:
    if step.attributes.get("transA", 0):
        raise NotImplementedError("transA")
    step.required(1, "a weight")
    if step.needs(2):
        step.give(2, step.rows.reduce_to(step.gradient, step.extent, step.extent_of(2)))
    if step.needs(0):
        gradient = _times_weight(step, step.gradient, 1, not step.attributes.get("transB", 0))
        alpha = step.attributes.get("alpha", 1.0)
        step.give(0, gradient if alpha == 1 else step.op("Mul", gradient, alpha))


def _times_weight(step: Step, rows: str, index: int, transposed: bool) -> str:
    """Multiply rows `[R, e]` with a weight: `[d, e]` transposed, or `[e, d]` as it is."""
    weight = step.node.input[index]
    return step.op("Gemm", rows, weight, transB=1) if transposed else step.op("MatMul", rows, weight)


def _mat_mul(step: Step) -> None:
    left, right = step.constant(0), step.constant(1)
    if right is not None and right.ndim == 2:
        target = step.extent_of(0)
        if target.rank == 2:
            step.give(0, _times_weight(step, step.gradient, 1, transposed=True))
            return
        if step.extent.batch == step.extent.rank - 1:
            raise NotImplementedError("a product along the batch")
        flat = step.op("Reshape", step.gradient, sizes(-1, right.shape[1]))
        step.give(0, step.rows.merge(_times_weight(step, flat, 1, transposed=True), target))
        return
    if left is not None and left.ndim == 2 and step.extent.batch < step.extent.rank - 2:
        step.give(1, step.op("MatMul", left.T.astype(np.float32), step.gradient))
        return
    _general_product(step)


def _general_product(step: Step) -> None:
    """Contribute the gradients of a product of two stacks of matrices, both of which may depend on the image."""
    extent = step.extent
    if extent.batch >= extent.rank - 2 or extent.rank < 3:
        raise NotImplementedError("a product along the batch")
    gradient = step.rows.split(step.gradient, extent)
    for index in (0, 1):
        if not step.needs(index):
            continue
        other = step.factor(1 - index)
        if (other.extent.rank if other.extent is not None else np.ndim(other.value)) < 2:
            raise NotImplementedError("a product with a vector")
        turned = _swapped(step, step.rows.beside(other, extent), extent.rank + 2)
        product = step.op("MatMul", gradient, turned) if index == 0 else step.op("MatMul", turned, gradient)
        target = step.extent_of(index)
        whole = Extent((*extent.dims[:-2], *target.dims[-2:]), extent.batch)
        step.give(index, step.rows.reduce_to(step.rows.merge(product, whole), whole, target))


def _swapped(step: Step, value: str, rank: int) -> str:
    return step.op("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])


def explicit_pads(step: Step, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], source: Extent) -> list[int]:
    """Return the pads of a convolution or pooling, `[begin..., end...]`, with `auto_pad` resolved."""
    count = len(kernel)
    automatic = step.attributes.get("auto_pad", b"NOTSET").decode()
    if automatic in ("NOTSET", ""):
        return list(step.attributes.get("pads", [0] * 2 * count))
    if automatic == "VALID":
        return [0] * 2 * count
    begins, ends = [], []
    for axis in range(count):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        total = max(0, (step.extent.dims[2 + axis] - 1) * strides[axis] + reach - source.dims[2 + axis])
        begins.append(total // 2 if automatic == "SAME_UPPER" else total - total // 2)
        ends.append(total - begins[-1])
    return begins + ends


def spread(
    step: Step,
    gradient: str,
    weight: str | np.ndarray,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    source: Extent,
    groups: int = 1,
) -> str:
    """Apply the transposed convolution that returns a gradient to the size of the convolution's input."""
    count = len(kernel)
    ends, extra = [], []
    for axis in range(count):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        over = strides[axis] * (step.extent.dims[2 + axis] - 1) + reach - pads[axis] - source.dims[2 + axis]
        ends.append(max(0, over))
        extra.append(max(0, -over))
    return step.op(
        "ConvTranspose",
        gradient,
        weight,
        kernel_shape=list(kernel),
        strides=list(strides),
        dilations=list(dilations),
        pads=[*pads[:count], *ends],
        output_padding=extra,
        group=groups,
    )


def _conv(step: Step) -> None:
    weight = step.required(1, "a weight")
    source = step.extent_of(0)
    if source.batch != 0:
        raise NotImplementedError("the batch on another axis")
    kernel = list(weight.shape[2:])
    strides = step.attributes.get("strides", [1] * len(kernel))
    dilations = step.attributes.get("dilations", [1] * len(kernel))
    pads = explicit_pads(step, kernel, strides, dilations, source)
    groups = step.attributes.get("group", 1)
    step.give(0, spread(step, step.gradient, step.node.input[1], kernel, strides, dilations, pads, source, groups))


def _conv_transpose(step: Step) -> None:
    """Contribute the convolution with the same weight. The output may have rows and columns that no input reaches; they are cut off."""
    weight, source = step.required(1, "a weight"), step.extent_of(0)
    kernel = list(weight.shape[2:])
    count = len(kernel)
    strides = step.attributes.get("strides", [1] * count)
    dilations = step.attributes.get("dilations", [1] * count)
    begins = _transposed_begins(step, kernel, strides, dilations, source)
    ends = [
        (source.dims[2 + axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1 - begins[axis] - step.extent.dims[2 + axis]
        for axis in range(count)
    ]
    gradient = step.gradient
    if min(ends) < 0:
        bounds = [step.extent.dims[2 + axis] + min(0, ends[axis]) for axis in range(count)]
        gradient = step.op("Slice", gradient, sizes(*[0] * count), sizes(*bounds), sizes(*range(2, 2 + count)))
    result = step.op(
        "Conv",
        gradient,
        step.node.input[1],
        kernel_shape=kernel,
        strides=list(strides),
        dilations=list(dilations),
        pads=[*begins, *(max(0, end) for end in ends)],
        group=step.attributes.get("group", 1),
    )
    step.give(0, result)


def _transposed_begins(step: Step, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], source: Extent) -> list[int]:
    """Return the pads at the begin of each axis of a transposed convolution."""
    count = len(kernel)
    automatic = step.attributes.get("auto_pad", b"NOTSET").decode()
    if "output_shape" not in step.attributes and automatic in ("NOTSET", "", "VALID"):
        return list(step.attributes.get("pads", [0] * 2 * count))[:count] if automatic != "VALID" else [0] * count
    begins = []
    for axis in range(count):
        extra = step.attributes.get("output_padding", [0] * count)[axis]
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        total = max(0, strides[axis] * (source.dims[2 + axis] - 1) + extra + reach - step.extent.dims[2 + axis])
        begins.append(total // 2 if automatic == "SAME_UPPER" else total - total // 2)
    return begins


def _batch_normalization(step: Step) -> None:
    scale, variance = step.required(1, "a scale").astype(np.float64), step.required(4, "a variance").astype(np.float64)
    if step.attributes.get("training_mode", 0):
        raise NotImplementedError("training_mode")
    factor = scale / np.sqrt(variance + step.attributes.get("epsilon", 1e-5))
    shape = (-1, *[1] * (step.extent.rank - 2))
    step.scale(0, Factor(factor.astype(np.float32).reshape(shape)))


def _layer_normalization(step: Step) -> None:
    axis = step.axis(-1, step.extent.rank)
    scale = step.required(1, "a scale")
    _normalised(step, range(axis, step.extent.rank), step.attributes.get("epsilon", 1e-5), scale)


def _instance_normalization(step: Step) -> None:
    scale = step.required(1, "a scale")
    shaped = scale.reshape(-1, *[1] * (step.extent.rank - 2))
    _normalised(step, range(2, step.extent.rank), step.attributes.get("epsilon", 1e-5), shaped)


def _group_normalization(step: Step) -> None:
    groups, scale = step.attributes["num_groups"], step.required(1, "a scale")
    channels = step.extent.dims[1]
    if scale.size == groups != channels:
        scale = np.repeat(scale, channels // groups)
    if step.extent.batch != 0:
        raise NotImplementedError("the batch on another axis")
    rows, rest = step.extent.dims[0], step.extent.dims[2:]
    grouped = Extent((rows, groups, channels // groups, *rest), 0)
    shaped = scale.reshape(groups, channels // groups, *[1] * len(rest))
    x = step.op("Reshape", step.node.input[0], sizes(-1, *grouped.dims[1:]))
    gradient = step.rows.merge(step.gradient, grouped)
    result = _normalised_gradient(step, x, gradient, grouped, range(2, grouped.rank), step.attributes.get("epsilon", 1e-5), shaped)
    step.give(0, step.rows.merge(result, step.extent))


def _normalised(step: Step, axes: Sequence[int], epsilon: float, scale: np.ndarray) -> None:
    step.give(0, _normalised_gradient(step, step.node.input[0], step.gradient, step.extent, axes, epsilon, scale))


def _normalised_gradient(step: Step, x: str, gradient: str, extent: Extent, axes: Sequence[int], epsilon: float, scale: np.ndarray) -> str:
    """Compute the gradient of `scale (x - mean) / sqrt(variance + epsilon)`, with mean and variance over `axes`.

    With the normalised value u and `g' = scale g` it is `(g' - mean(g') - u mean(u g')) / sqrt(variance + epsilon)`.
    """
    if extent.batch in axes or extent.batch > min(axes):
        raise NotImplementedError("an axis along the batch")
    own = sizes(*axes)
    centred = step.op("Sub", x, step.op("ReduceMean", x, own, keepdims=1))
    variance = step.op("ReduceMean", step.op("Mul", centred, centred), own, keepdims=1)
    inverse = step.op("Reciprocal", step.op("Sqrt", step.op("Add", variance, epsilon)))
    unit = step.rows.beside(Factor(step.op("Mul", centred, inverse), extent), extent)
    reduced = Extent(tuple(1 if axis in axes else size for axis, size in enumerate(extent.dims)), extent.batch)
    inverse = step.rows.beside(Factor(inverse, reduced), extent)
    weighted = step.op("Mul", step.rows.split(gradient, extent), step.rows.beside(Factor(scale.astype(np.float32)), extent))
    split = sizes(*(axis + 2 for axis in axes))
    mean = step.op("ReduceMean", weighted, split, keepdims=1)
    along = step.op("ReduceMean", step.op("Mul", weighted, unit), split, keepdims=1)
    result = step.op("Mul", step.op("Sub", step.op("Sub", weighted, mean), step.op("Mul", unit, along)), inverse)
    return step.rows.merge(result, extent)


def _lrn(step: Step) -> None:
    """Contribute the gradient of local response normalisation, `y = x / d^beta`.

    The divisor is `d = bias + alpha / size sum(x^2)` over neighbouring channels.
    """
    size, alpha = step.attributes["size"], step.attributes.get("alpha", 1e-4)
    beta, bias = step.attributes.get("beta", 0.75), step.attributes.get("bias", 1.0)
    extent = step.extent
    if extent.batch != 0 or extent.dims[0] != 1:
        raise NotImplementedError("the batch on another axis")
    channels = extent.dims[1]
    flat = sizes(-1, channels, int(np.prod(extent.dims[2:])))
    offsets = np.arange(channels)[None] - np.arange(channels)[:, None]
    band = ((offsets >= -((size - 1) // 2)) & (offsets <= size // 2)).astype(np.float32)
    x = step.op("Reshape", step.node.input[0], flat)
    below = step.op("Add", step.op("Mul", step.op("MatMul", band, step.op("Mul", x, x)), alpha / size), bias)
    power = step.op("Reshape", step.op("Pow", below, -beta), sizes(-1, *extent.dims[1:]))
    direct = step.rows.combine("Mul", step.gradient, extent, Factor(power, extent))
    across = step.op("Reshape", step.op("Mul", x, step.op("Pow", below, -beta - 1)), sizes(-1, *extent.dims[1:]))
    terms = step.op("Reshape", step.rows.combine("Mul", step.gradient, extent, Factor(across, extent)), flat)
    summed = step.op("Reshape", step.op("MatMul", band.T.copy(), terms), sizes(-1, *extent.dims[1:]))
    scaled = step.op("Mul", step.rows.combine("Mul", summed, extent, Factor(step.node.input[0], extent)), -2 * alpha * beta / size)
    step.give(0, step.op("Add", direct, scaled))


LINEAR_RULES: dict[str, Rule] = {
    "Gemm": _gemm,
    "MatMul": _mat_mul,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": einsum,
    "BatchNormalization": _batch_normalization,
    "LayerNormalization": _layer_normalization,
    "InstanceNormalization": _instance_normalization,
    "GroupNormalization": _group_normalization,
    "LRN": _lrn,
}
