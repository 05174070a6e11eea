"""Pooling operators of `double_tail`, and the windows of its convolution, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun

Doubles = npt.NDArray[np.float64]


def windows(
    x: Doubles,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    fill: float,
    out: Sequence[int],
) -> list[Doubles]:
    """Return, for each position of the kernel, the values at this position of each window, `[N, c, *out]`."""
    count = len(kernel)
    ends = [max(0, (out[a] - 1) * strides[a] + (kernel[a] - 1) * dilations[a] + 1 - x.shape[2 + a] - pads[a]) for a in range(count)]
    padded = np.pad(x, [(0, 0), (0, 0), *((pads[a], ends[a]) for a in range(count))], constant_values=fill)
    cut = []
    for offset in np.ndindex(*kernel):
        own = tuple(
            slice(offset[a] * dilations[a], offset[a] * dilations[a] + (out[a] - 1) * strides[a] + 1, strides[a]) for a in range(count)
        )
        cut.append(padded[(slice(None), slice(None), *own)])
    return cut


def geometry(
    x: Doubles, kernel: Sequence[int], auto_pad: Any, strides: Any, dilations: Any, pads: Any, ceil_mode: int = 0
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return strides, dilations, pads and the size of the output."""
    count = len(kernel)
    strides, dilations, pads = list(strides or [1] * count), list(dilations or [1] * count), list(pads or [0] * 2 * count)
    sizes = []
    for a in range(count):
        reach, size = (kernel[a] - 1) * dilations[a] + 1, x.shape[2 + a]
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            sizes.append(-(-size // strides[a]))
            total = max(0, (sizes[a] - 1) * strides[a] + reach - size)
            pads[a] = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
            pads[a + count] = total - pads[a]
            continue
        room = size + pads[a] + pads[a + count] - reach
        steps = -(-room // strides[a]) if ceil_mode else room // strides[a]
        if ceil_mode and steps * strides[a] >= size + pads[a]:
            steps -= 1
        sizes.append(steps + 1)
    return strides, dilations, pads, sizes


class MaxPool(OpRun):
    """Maximum over windows."""

    op_domain = ""

    def _run(
        self,
        x: Doubles,
        auto_pad: Any = None,
        ceil_mode: Any = None,
        dilations: Any = None,
        kernel_shape: Any = None,
        pads: Any = None,
        storage_order: Any = None,
        strides: Any = None,
    ) -> tuple[Doubles]:
        strides, dilations, pads, out = geometry(x, kernel_shape, auto_pad, strides, dilations, pads, int(ceil_mode or 0))
        return (np.max(np.stack(windows(x, kernel_shape, strides, dilations, pads, -np.inf, out)), 0),)


class AveragePool(OpRun):
    """Mean over windows."""

    op_domain = ""

    def _run(
        self,
        x: Doubles,
        auto_pad: Any = None,
        ceil_mode: Any = None,
        count_include_pad: Any = None,
        dilations: Any = None,
        kernel_shape: Any = None,
        pads: Any = None,
        strides: Any = None,
    ) -> tuple[Doubles]:
        strides, dilations, pads, out = geometry(x, kernel_shape, auto_pad, strides, dilations, pads, int(ceil_mode or 0))
        total = np.sum(windows(x, kernel_shape, strides, dilations, pads, 0.0, out), 0)
        inside = np.ones_like(x)
        if count_include_pad:
            count = len(kernel_shape)
            inside = np.pad(inside, [(0, 0), (0, 0), *((pads[a], pads[a + count]) for a in range(count))], constant_values=1.0)
            pads = [0] * 2 * count
        counts = np.sum(windows(inside, kernel_shape, strides, dilations, pads, 0.0, out), 0)
        return (total / counts,)


class LpPool(OpRun):
    """Norm over windows."""

    op_domain = ""

    def _run(
        self,
        x: Doubles,
        auto_pad: Any = None,
        ceil_mode: Any = None,
        dilations: Any = None,
        kernel_shape: Any = None,
        p: Any = None,
        pads: Any = None,
        strides: Any = None,
    ) -> tuple[Doubles]:
        power = int(p or 2)
        strides, dilations, pads, out = geometry(x, kernel_shape, auto_pad, strides, dilations, pads, int(ceil_mode or 0))
        total = np.sum(windows(np.abs(x) ** power, kernel_shape, strides, dilations, pads, 0.0, out), 0)
        return (total ** (1 / power),)


class GlobalLpPool(OpRun):
    """Norm over all positions."""

    op_domain = ""

    def _run(self, x: Doubles, p: Any = None) -> tuple[Doubles]:
        power = int(p or 2)
        return ((np.abs(x) ** power).sum(tuple(range(2, x.ndim)), keepdims=True) ** (1 / power),)
