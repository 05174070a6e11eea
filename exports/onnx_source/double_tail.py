"""Part of a graph after a layer, run in float64 by onnx's reference evaluator, for finite differences.

The evaluator's own convolution and pooling are loops in Python, and its error function returns float32. The operators here are fast, and
compute in float64. The evaluator finds each by the name of its class.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from tlcli.contract.errors import ExportError
from tlcli.exports.onnx_source.double_pooling import AveragePool, GlobalLpPool, LpPool, MaxPool, geometry, windows
from tlcli.exports.onnx_source.double_resampling import ConvTranspose, Resize
from tlcli.exports.onnx_source.double_selection import GatherElements
from tlcli.exports.onnx_source.graph.graph_part import tail_nodes
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
        dependents, nodes = tail_nodes(graph, layer, logits)
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
        self._evaluator = ReferenceEvaluator(model, new_ops=_OPERATORS)

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
        if node.op_type == "ConstantOfShape" and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float64)))
    if node.op_type == "ConstantOfShape" and not node.attribute:
        copy.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1))))
    return copy


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
        strides, dilations, pads, out = geometry(x, kernel, auto_pad, strides, dilations, pads)
        cut = windows(x, kernel, strides, dilations, pads, 0.0, out)
        rows, channels = len(x), x.shape[1] // groups
        columns = np.stack(cut, 2).reshape(rows, groups, channels * len(cut), -1)
        flat = weight.reshape(groups, weight.shape[0] // groups, -1)
        result = np.matmul(flat[None], columns).reshape(rows, weight.shape[0], *out)
        if bias is not None:
            result = result + bias.reshape(-1, *[1] * len(out))
        return (result,)


_OPERATORS: list[type[OpRun]] = [
    AveragePool,
    Conv,
    ConvTranspose,
    Erf,
    GatherElements,
    Gelu,
    GlobalLpPool,
    GroupNormalization,
    LRN,
    LpPool,
    MaxPool,
    Resize,
]
