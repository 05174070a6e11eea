"""Backward operators that ONNX does not have, written with operators that it has.

Each follows from the definition of its forward operator; tests compare each with autograd. Only the derivative
with respect to the input is formed: at export the weights are constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions

aten = torch.ops.aten


def _convolution_backward(
    gradient: Tensor,
    inputs: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dy/dx of a convolution is the transposed convolution with the same weight; of a transposed one, the convolution."""
    if output_mask[1] or output_mask[2]:
        raise NotImplementedError("gradients of weights are not exported")
    if transposed:
        return aten.convolution(gradient, weight, None, stride, padding, dilation, False, [0, 0], groups), None, None
    missing = [
        inputs.shape[2 + d] - ((gradient.shape[2 + d] - 1) * stride[d] - 2 * padding[d] + dilation[d] * (weight.shape[2 + d] - 1) + 1)
        for d in range(len(stride))
    ]
    return aten.convolution(gradient, weight, None, stride, padding, dilation, True, missing, groups), None, None


def _adaptive_avg_pool2d_backward(gradient: Tensor, inputs: Tensor) -> Tensor:
    """Adaptive pooling averages rows, then columns: `R x C^T` with constant matrices. Its derivative is `R^T g C`."""
    rows = _averaging(int(inputs.shape[-2]), int(gradient.shape[-2]))
    columns = _averaging(int(inputs.shape[-1]), int(gradient.shape[-1]))
    return ((gradient @ columns).transpose(-1, -2) @ rows).transpose(-1, -2)


def _averaging(size: int, pooled: int) -> Tensor:
    """`[pooled, size]`: row i averages the positions floor(i size / pooled) to ceil((i + 1) size / pooled)."""
    matrix = [[0.0] * size for _ in range(pooled)]
    for i in range(pooled):
        first, last = i * size // pooled, -(-(i + 1) * size // pooled)
        matrix[i][first:last] = [1 / (last - first)] * (last - first)
    return torch.tensor(matrix)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    **get_decompositions(
        [
            aten.threshold_backward,
            aten.hardswish_backward,
            aten.hardtanh_backward,
            aten.hardsigmoid_backward,
            aten.silu_backward,
            aten.gelu_backward,
            aten.sigmoid_backward,
            aten.tanh_backward,
            aten.elu_backward,
            aten.leaky_relu_backward,
            aten.native_layer_norm_backward,
            aten.native_group_norm_backward,
            aten._softmax_backward_data,
            aten.native_dropout_backward,
            aten.slice_backward,
            aten.select_backward,
            aten.native_batch_norm_backward,
        ]
    ),
    aten.convolution_backward.default: _convolution_backward,
    aten._adaptive_avg_pool2d_backward.default: _adaptive_avg_pool2d_backward,
}
