"""Part of a graph after a layer, run in float64 by onnx's reference evaluator, for finite differences.

The evaluator's own convolution and pooling are loops in Python, and its error function returns float32. The operators here are fast, and
compute in float64. The evaluator finds each by the name of its class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from tlcli.contract.errors import ExportError
from tlcli.exports.onnx_source.double_resampling import ConvTranspose, Resize
from tlcli.exports.onnx_source.graph.graph_part import layer_nodes
from tlcli.exports.onnx_source.graph.observed_graph import ObservedGraph
from tlcli.exports.rewrite.graph_edit import copied

Doubles = npt.NDArray[np.float64]


class DoubleTail:
    """Function from a layer's activations to the logits, in float64.

    saved: names of the other values that it takes, which are computed from the images.
    """

    def __init__(self, graph: ObservedGraph, layer: str, logits: str) -> None:
        """Cut the graph after the layer.

        Raises:
            ExportError: the part after the layer needs a value that cannot be saved.
        """
        self._layer, self._logits = layer, logits
        dependents, nodes = layer_nodes(graph, [layer], logits)
        outside = {name for node in nodes for name in node.input if name and name not in dependents}
        self.saved = sorted(outside - graph.constants.keys())
        for name in self.saved:
            if name not in graph.extents or graph.extents[name].batch != 0:
                raise ExportError(f"{name} depends on the number of images: choose another --cam-layer")
        constants = [numpy_helper.from_array(_double(graph.constants[name]), name) for name in sorted(outside & graph.constants.keys())]
        inputs = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in (layer, *self.saved)]
        outputs = [helper.make_tensor_value_info(logits, TensorProto.DOUBLE, None)]
        whole = helper.make_graph([_in_double(node) for node in nodes], "tail", inputs, outputs, constants)
        model = helper.make_model(whole, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version)
        self._evaluator = ReferenceEvaluator(
            model, new_ops=[AveragePool, Conv, ConvTranspose, Erf, Gelu, GroupNormalization, LRN, MaxPool, Resize]
        )

    def __call__(self, activations: Doubles, saved: dict[str, Doubles]) -> Doubles:
        """Return the logits `[R, C]` for activations of R rows, and the saved values of as many rows."""
        (logits,) = self._evaluator.run([self._logits], {self._layer: activations, **saved})
        return np.asarray(logits, dtype=np.float64).reshape(len(activations), -1)


def _double(value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return value.astype(np.float64) if value.dtype == np.float32 else value


def _in_double(node: NodeProto) -> NodeProto:
    copy = copied(node)
    for attribute in copy.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.DOUBLE
    return copy


def _windows(
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
    windows = []
    for offset in np.ndindex(*kernel):
        own = tuple(
            slice(offset[a] * dilations[a], offset[a] * dilations[a] + (out[a] - 1) * strides[a] + 1, strides[a]) for a in range(count)
        )
        windows.append(padded[(slice(None), slice(None), *own)])
    return windows


def _geometry(
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


class GroupNormalization(OpRun):
    """Normalisation over groups of channels, with a scale per channel."""

    op_domain = ""

    def _run(
        self, x: Doubles, scale: Doubles, bias: Doubles, epsilon: float | None = None, num_groups: int | None = None, stash_type: Any = None
    ) -> tuple[Doubles]:
        grouped = x.reshape(len(x), int(num_groups or 1), -1)
        centred = grouped - grouped.mean(2, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(2, keepdims=True) + (1e-5 if epsilon is None else epsilon))
        shape = (-1, *[1] * (x.ndim - 2))
        return (unit.reshape(x.shape) * scale.reshape(shape) + bias.reshape(shape),)


class LRN(OpRun):
    """Local response normalisation."""

    op_domain = ""

    def _run(
        self, x: Doubles, alpha: float | None = None, beta: float | None = None, bias: float | None = None, size: int | None = None
    ) -> tuple[Doubles]:
        squares, count, channels = x**2, int(size or 1), x.shape[1]
        sums = [squares[:, max(0, c - (count - 1) // 2) : c + count // 2 + 1].sum(1) for c in range(channels)]
        below = (1.0 if bias is None else bias) + (1e-4 if alpha is None else alpha) / count * np.stack(sums, 1)
        return (x / below ** (0.75 if beta is None else beta),)


class Erf(OpRun):
    """Error function."""

    op_domain = ""

    def _run(self, x: Doubles) -> tuple[Doubles]:
        return (_erf(x),)


class Gelu(OpRun):
    """Gaussian error linear unit."""

    op_domain = ""

    def _run(self, x: Doubles, approximate: Any = None) -> tuple[Doubles]:
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1 + _erf(x / math.sqrt(2))),)


def _erf(x: Doubles) -> Doubles:
    values: Doubles = np.vectorize(math.erf, otypes=[np.float64])(x)
    return values


class Conv(OpRun):
    """Convolution, as a product with the windows of the input."""

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
        pads: Any = None,
        strides: Any = None,
    ) -> tuple[Doubles]:
        kernel, groups = weight.shape[2:], int(group or 1)
        strides, dilations, pads, out = _geometry(x, kernel, auto_pad, strides, dilations, pads)
        windows = _windows(x, kernel, strides, dilations, pads, 0.0, out)
        rows, channels = len(x), x.shape[1] // groups
        columns = np.stack(windows, 2).reshape(rows, groups, channels * len(windows), -1)
        flat = weight.reshape(groups, weight.shape[0] // groups, -1)
        result = np.matmul(flat[None], columns).reshape(rows, weight.shape[0], *out)
        if bias is not None:
            result = result + bias.reshape(-1, *[1] * len(out))
        return (result,)


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
        strides, dilations, pads, out = _geometry(x, kernel_shape, auto_pad, strides, dilations, pads, int(ceil_mode or 0))
        return (np.max(np.stack(_windows(x, kernel_shape, strides, dilations, pads, -np.inf, out)), 0),)


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
        strides, dilations, pads, out = _geometry(x, kernel_shape, auto_pad, strides, dilations, pads, int(ceil_mode or 0))
        total = np.sum(_windows(x, kernel_shape, strides, dilations, pads, 0.0, out), 0)
        inside = np.ones_like(x)
        if count_include_pad:
            count = len(kernel_shape)
            inside = np.pad(inside, [(0, 0), (0, 0), *((pads[a], pads[a + count]) for a in range(count))], constant_values=1.0)
            pads = [0] * 2 * count
        counts = np.sum(_windows(inside, kernel_shape, strides, dilations, pads, 0.0, out), 0)
        return (total / counts,)
