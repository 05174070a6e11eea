"""Check that a graph computes in float32, so that it has a gradient and a float64 reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto

from tlcli.contract.errors import ExportError
from tlcli.exports.onnx_source.graph.observed_graph import ObservedGraph

_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "ConvInteger", "MatMulInteger", "QLinear", "QGemm", "DynamicQuantize")
"""Beginnings of the names of quantised operators, of ONNX and of ONNX Runtime."""
_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def require_float32(graph: ObservedGraph, path: Path) -> None:
    """Check the operators that depend on the images. Quantised weights that are converted to float32 first are constants here.

    Raises:
        ExportError: the graph rounds activations to integers, or computes in float16.
    """
    for node in graph.nodes:
        if node.op_type.startswith(_QUANTISED):
            raise ExportError(
                f"{path}: quantised: {node.op_type} ({node.name}) rounds to integers, and has no gradient: give the float32 file that"
                " it was made from"
            )
        to_half = node.op_type == "Cast" and any(value.name == "to" and value.i in _HALF for value in node.attribute)
        if to_half or any(name in graph.constants and graph.constants[name].dtype == np.float16 for name in node.input):
            raise ExportError(f"{path}: {node.op_type} ({node.name}) computes in float16: give the float32 file that it was made from")
