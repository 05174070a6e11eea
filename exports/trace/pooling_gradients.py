"""Gradients of pooling and upsampling, built from operators that ONNX supports.

Each gradient follows from the definition of its forward operator and is tested against autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def max_pool2d_backward(
    gradient: Tensor,
    inputs: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    _indices: Tensor,
) -> Tensor:
    """Add each window's gradient to the position of its first maximum.

    The positions are recomputed here so that the forward pass, which must stay cheap, does not have to return them.
    """
    _, positions = aten.max_pool2d_with_indices(inputs, kernel, stride, padding, dilation, ceil_mode)
    return _scatter(gradient, positions, inputs)


def adaptive_max_pool2d_backward(gradient: Tensor, inputs: Tensor, _indices: Tensor) -> Tensor:
    """Compute the gradient of global max pooling by adding each channel's gradient to the position of its first maximum."""
    if tuple(gradient.shape[-2:]) != (1, 1):
        raise NotImplementedError("adaptive max pooling to more than 1x1 has no exported gradient")
    positions = inputs.flatten(-2).argmax(-1, keepdim=True)[..., None]
    return _scatter(gradient, positions, inputs)


def _scatter(gradient: Tensor, positions: Tensor, inputs: Tensor) -> Tensor:
    """Scatter-add a gradient into zeros of the shape of `inputs`.

    Args:
        gradient: `[N, c, i, j]`.
        positions: `[N, c, i, j]`, indices into the flattened last two dimensions of `inputs`.
        inputs: `[N, c, h, w]`.
    """
    blank = torch.zeros_like(inputs).flatten(-2)
    return blank.scatter_add(-1, positions.flatten(-2), gradient.flatten(-2)).view(inputs.shape)


def avg_pool2d_backward(
    gradient: Tensor,
    inputs: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """Distribute each window's gradient equally over its positions, by a transposed convolution of each channel with ones."""
    if divisor_override is not None:
        raise NotImplementedError("average pooling with a custom divisor has no exported gradient")
    kernel, padding = _pair(kernel), _pair(padding)
    stride = _pair(stride) if stride else kernel
    sizes = inputs.shape[-2:]
    # Distance from the end of the padded image to the end of the last window: negative if positions remain, positive with `ceil_mode`.
    over = [(gradient.shape[2 + d] - 1) * stride[d] + kernel[d] - sizes[d] - 2 * padding[d] for d in (0, 1)]
    window = gradient.new_ones(1, 1, *kernel)
    inside = gradient.new_ones(1, 1, *sizes)
    padded = aten.constant_pad_nd(inside, [padding[1], padding[1], padding[0], padding[0]], float(count_include_pad))
    reached = aten.constant_pad_nd(padded, [0, over[1], 0, over[0]], 0.0)
    counts = aten.convolution(reached, window, None, stride, [0, 0], [1, 1], False, [0, 0], 1)
    shares = (gradient / counts).flatten(0, 1)[:, None]
    spread = aten.convolution(shares, window, None, stride, [0, 0], [1, 1], True, [0, 0], 1)
    cut = [
        -padding[1],
        -padding[1] - over[1],
        -padding[0],
        -padding[0] - over[0],
    ]  # crops positions beyond the image, or pads missing ones
    result: Tensor = aten.constant_pad_nd(spread, cut, 0.0).reshape(inputs.shape)
    return result


def adaptive_avg_pool2d_backward(gradient: Tensor, inputs: Tensor) -> Tensor:
    """Compute the gradient as `R^T g C`. Adaptive pooling averages rows, then columns: it is `R x C^T` with constant matrices R and C."""
    return _separable(gradient, inputs.shape, _averaging)


def upsample_nearest2d_backward(
    gradient: Tensor, _size: Sequence[int], inputs: Sequence[int], scale_h: float | None = None, scale_w: float | None = None
) -> Tensor:
    """Compute the gradient by summing over the copies that upsampling made of each position."""
    return _separable(gradient, inputs, _copying)


def upsample_bilinear2d_backward(
    gradient: Tensor,
    _size: Sequence[int],
    inputs: Sequence[int],
    align_corners: bool,
    scale_h: float | None = None,
    scale_w: float | None = None,
) -> Tensor:
    """Compute the gradient as `R^T g C`. Bilinear interpolation is `R x C^T` with constant matrices R and C."""
    return _separable(gradient, inputs, _interpolating_to_corners if align_corners else _interpolating)


def _separable(gradient: Tensor, shape: Sequence[int], matrix: Callable[[int, int], list[list[float]]]) -> Tensor:
    """Compute `R^T g C`, where R and C are the `[to, from]` matrices of the rows and columns, built by `matrix(from, to)`."""
    rows = torch.tensor(matrix(int(shape[-2]), int(gradient.shape[-2])), dtype=gradient.dtype)
    columns = torch.tensor(matrix(int(shape[-1]), int(gradient.shape[-1])), dtype=gradient.dtype)
    return ((gradient @ columns).transpose(-1, -2) @ rows).transpose(-1, -2)


def _averaging(size: int, pooled: int) -> list[list[float]]:
    """Return a matrix whose row i averages the positions from floor(i size / pooled) up to but excluding ceil((i + 1) size / pooled)."""
    matrix = [[0.0] * size for _ in range(pooled)]
    for i in range(pooled):
        first, last = i * size // pooled, -(-(i + 1) * size // pooled)
        matrix[i][first:last] = [1 / (last - first)] * (last - first)
    return matrix


def _copying(size: int, enlarged: int) -> list[list[float]]:
    """Return a matrix whose row i copies the position floor(i size / enlarged)."""
    matrix = [[0.0] * size for _ in range(enlarged)]
    for i in range(enlarged):
        matrix[i][i * size // enlarged] = 1.0
    return matrix


def _interpolating(size: int, enlarged: int) -> list[list[float]]:
    """Return a matrix whose row i interpolates at (i + 1/2) size / enlarged - 1/2, between pixel centres."""
    return _between(size, [max(0.0, (i + 0.5) * size / enlarged - 0.5) for i in range(enlarged)])


def _interpolating_to_corners(size: int, enlarged: int) -> list[list[float]]:
    """Return a matrix whose row i interpolates at i (size - 1) / (enlarged - 1)."""
    return _between(size, [i * (size - 1) / max(1, enlarged - 1) for i in range(enlarged)])


def _between(size: int, positions: Sequence[float]) -> list[list[float]]:
    """Return a matrix whose rows interpolate linearly at the given positions."""
    matrix = [[0.0] * size for _ in positions]
    for row, position in zip(matrix, positions, strict=True):
        low = min(int(position), size - 1)
        row[low] += 1 - (position - low)
        row[min(low + 1, size - 1)] += position - low
    return matrix


def _pair(value: Sequence[int]) -> list[int]:
    return [value[0], value[-1]]


POOLING: dict[Any, Callable[..., Any]] = {
    aten.max_pool2d_with_indices_backward.default: max_pool2d_backward,
    aten.adaptive_max_pool2d_backward.default: adaptive_max_pool2d_backward,
    aten.avg_pool2d_backward.default: avg_pool2d_backward,
    aten._adaptive_avg_pool2d_backward.default: adaptive_avg_pool2d_backward,
    aten.upsample_nearest2d_backward.default: upsample_nearest2d_backward,
    aten.upsample_bilinear2d_backward.default: upsample_bilinear2d_backward,
}
