"""Operators of `double_tail` that make maps larger or smaller, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_resize import Resize as ReferenceResize

Doubles = npt.NDArray[np.float64]


class Resize(ReferenceResize):
    """Resizing, as a product with a matrix along each axis. The matrix is what the evaluator's own operator makes of the identity."""

    op_domain = ""

    def _run(  # type: ignore[override]
        self, x: Doubles, roi: Any = None, scales: Any = None, sizes: Any = None, axes: Any = None, **settings: Any
    ) -> tuple[Doubles]:
        chosen = [int(axis) % x.ndim for axis in (range(x.ndim) if axes is None else axes)]
        for number, axis in enumerate(chosen):
            old = x.shape[axis]
            scale = None if scales is None or not len(scales) else [float(scales[number])]
            size = None if scale is not None else [int(sizes[number])]
            if (scale == [1.0]) or size == [old]:
                continue
            (matrix,) = super()._run(np.eye(old), None, scale, size, axes=[1], **settings)
            x = np.moveaxis(np.tensordot(x, matrix, (axis, 0)), -1, axis)
        return (x,)


class ConvTranspose(OpRun):
    """Transposed convolution: each position of the kernel adds to the positions of the output that it meets."""

    op_domain = ""

    def _run(
        self,
        x: Doubles,
        weight: Doubles,
        bias: Doubles | None = None,
        auto_pad: Any = None,
        dilations: Any = None,
        group: Any = None,
        kernel_shape: Any = None,
        output_padding: Any = None,
        output_shape: Any = None,
        pads: Any = None,
        strides: Any = None,
    ) -> tuple[Doubles]:
        kernel, groups, count = weight.shape[2:], int(group or 1), x.ndim - 2
        strides, dilations = list(strides or [1] * count), list(dilations or [1] * count)
        extra, pads = list(output_padding or [0] * count), list(pads or [0] * 2 * count)
        whole = [(x.shape[2 + a] - 1) * strides[a] + (kernel[a] - 1) * dilations[a] + 1 for a in range(count)]
        sizes = [whole[a] + extra[a] - pads[a] - pads[a + count] for a in range(count)]
        if output_shape is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            sizes = list(output_shape) if output_shape is not None else [x.shape[2 + a] * strides[a] for a in range(count)]
            total = [max(0, whole[a] + extra[a] - sizes[a]) for a in range(count)]
            pads = [value // 2 if auto_pad == "SAME_UPPER" else value - value // 2 for value in total]
        rows, inner = len(x), weight.shape[1]
        split = weight.reshape(groups, -1, inner, *kernel)
        columns = x.reshape(rows, groups, x.shape[1] // groups, *x.shape[2:])
        full = np.zeros((rows, groups, inner, *(whole[a] + extra[a] for a in range(count))))
        for offset in np.ndindex(*kernel):
            own = tuple(
                slice(offset[a] * dilations[a], offset[a] * dilations[a] + (x.shape[2 + a] - 1) * strides[a] + 1, strides[a])
                for a in range(count)
            )
            product = np.einsum("ngi...,gio->ngo...", columns, split[(slice(None), slice(None), slice(None), *offset)])
            full[(slice(None), slice(None), slice(None), *own)] += product
        cut = tuple(slice(pads[a], pads[a] + sizes[a]) for a in range(count))
        result = full.reshape(rows, groups * inner, *full.shape[3:])[(slice(None), slice(None), *cut)]
        return (result if bias is None else result + bias.reshape(-1, *[1] * count),)
