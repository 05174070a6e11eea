"""Decompositions of backward operators into operators that ONNX supports.

Each decomposition follows from the definition of its forward operator and is tested against autograd. Only the derivative with
respect to the input is computed, because the weights of an exported graph are constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions

from tlcli.exports.trace.pooling_gradients import POOLING

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
    """Compute the gradient of a convolution with respect to its input.

    The gradient is the transposed convolution with the same weight, or the convolution if the forward operator is a transposed one. If the
    kernel covers the entire input, as in VGG's fc6, it is a matrix product with the flattened weight instead, because a transposed
    convolution would read the weight once per image.
    """
    if output_mask[1] or output_mask[2]:
        raise NotImplementedError("gradients of weights are not exported")
    if not transposed and covers(inputs.shape, weight.shape, padding, dilation, groups):
        return (gradient.flatten(1) @ weight.flatten(1)).reshape(inputs.shape), None, None
    if transposed:
        return aten.convolution(gradient, weight, None, stride, padding, dilation, False, [0, 0], groups), None, None
    reached = [(gradient.shape[2 + d] - 1) * stride[d] + dilation[d] * (weight.shape[2 + d] - 1) + 1 for d in range(len(stride))]
    missing = [inputs.shape[2 + d] + 2 * padding[d] - reached[d] for d in range(len(stride))]
    if all(isinstance(size, int) for size in missing):
        return aten.convolution(gradient, weight, None, stride, padding, dilation, True, missing, groups), None, None
    # ONNX does not accept a symbolic size as output padding: compute the whole extent, then crop it to the image.
    whole = aten.convolution(gradient, weight, None, stride, [0] * len(stride), dilation, True, [0] * len(stride), groups)
    edges = [edge for d in reversed(range(len(stride))) for edge in (-padding[d], inputs.shape[2 + d] + padding[d] - reached[d])]
    return aten.constant_pad_nd(whole, edges, 0.0), None, None


def covers(inputs: Sequence[int], weight: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int) -> bool:
    """Return True if a convolution equals a single matrix product of its flattened input and weight.

    This is so if the kernel has the input's size, without padding, dilation and groups.

    Args:
        inputs: shape of the input, `[N, c, h, w]`.
        weight: shape of the weight, `[o, c, h, w]`.
        padding, dilation, groups: arguments of the convolution.
    """
    same = len(inputs) == 4 and all(isinstance(size, int) for size in inputs[2:]) and tuple(inputs[2:]) == tuple(weight[2:])
    return same and not any(padding) and all(step == 1 for step in dilation) and groups == 1


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
            aten.softplus_backward,
            aten.mish_backward,
            aten.glu_backward,
            aten._prelu_kernel_backward,
        ]
    ),
    aten.convolution_backward.default: _convolution_backward,
    **POOLING,
}
