"""Quantisation of the forward pass's convolutions to int8 for CPUs, with ONNX Runtime's static quantisation in QDQ format.

Weights have one scale per output channel. Activations have one scale per tensor, from their extremes over the calibration images. Operators
on pooled values (squeeze-and-excitation, heads) stay in float: they take almost no time, and errors do not average out over so few values.
Everything from which maps are computed also stays in float. Maps use dequantised values of the forward pass. A weight that the backward
pass also uses is stored once, in int8.

The quantiser works on the nodes of a plain graph and does not see the values that branches capture, so only the forward pass is passed to
it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from tlcli.contract.files.atomic_file import named_errors
from tlcli.contract.model.description import IMAGES, LOGITS, TARGETS
from tlcli.contract.process.quiet import quiet
from tlcli.exports.precision.fold_batch_norm import Folded, fold_batch_norms
from tlcli.exports.precision.forward_subgraph import needed_outside, put_back, take_out
from tlcli.exports.rewrite.graph_edit import add_constant, replace_nodes

_QUANTISED = "_quantized"
"""Suffix that the quantiser appends to the names of weights."""
_ROUNDED_AWAY = ("Relu", "Clip", "MaxPool")
"""Operators that compute in int8 if their input is int8. The first two cost nothing, because a convolution's rounding already performs
them."""
_GATES = ("Sigmoid", "Mul")
"""Operators between convolutions, in SiLU and squeeze-and-excitation. In float, they would cost more time than int8 saves."""


def quantise(flat: ModelProto, images: Sequence[npt.NDArray[np.uint8]]) -> None:
    """Quantise the convolutions of a flat graph's forward pass to int8, in place.

    Args:
        flat: flat graph from `tlcli.exports.onnx_writer.flat_graph`.
        images: calibration inputs, uint8 `[H, W, 3]` each.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    part = take_out(flat, [LOGITS])
    _normalise_in_one(part.graph)
    folded = fold_batch_norms(part.graph)
    with tempfile.TemporaryDirectory() as folder, named_errors(Path(folder)), quiet():
        before, after = Path(folder) / "forward.onnx", Path(folder) / "quantised.onnx"
        onnx.save(part, str(before))
        quantize_static(
            before,
            after,
            _CalibrationReader(images, {value.name for value in part.graph.input}),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", *_ROUNDED_AWAY, *_GATES],
            nodes_to_quantize=_nodes_to_quantise(part.graph),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        quantised = onnx.load(str(after))
    put_back(flat, [LOGITS], quantised, _weights_for_maps(quantised.graph, folded, needed_outside(flat.graph, [LOGITS])))


def _normalise_in_one(graph: GraphProto) -> None:
    """Replace the subtraction and division of the normalisation with a single batch norm.

    int8 convolutions need channels-last inputs. To save a `Transpose`, ONNX Runtime moves the `Transpose` after the images past the
    operators that follow. Then the normalisation would run in channels-last layout, where subtracting a value per channel takes several
    times as long as in planes. ONNX Runtime does not move a `Transpose` past a batch norm.
    """
    nodes = list(graph.node)
    producer = {value: node for node in nodes for value in node.output}
    weights = {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}

    def source_of(node: NodeProto, kind: str) -> NodeProto | None:
        source = producer.get(node.input[0])
        return source if source is not None and source.op_type == kind else None

    for divide in (node for node in nodes if node.op_type == "Div"):
        subtract = source_of(divide, "Sub")
        if subtract is None or source_of(subtract, "Cast") is None or not {divide.input[1], subtract.input[1]} <= weights.keys():
            continue
        mean, std = (weights[node.input[1]].reshape(-1).astype(np.float64) for node in (subtract, divide))
        values = {"scale": np.ones_like(mean), "shift": np.zeros_like(mean), "mean": mean, "variance": std**2}
        named = [add_constant(graph, f"{divide.output[0]}/{name}", value.astype(np.float32)) for name, value in values.items()]
        norm = helper.make_node(
            "BatchNormalization", [subtract.input[0], *named], [*divide.output], name=f"{divide.output[0]}/normalised", epsilon=0.0
        )
        replace_nodes(graph, [norm if node is divide else node for node in nodes if node is not subtract])
        return


class _CalibrationReader:
    """Reader that yields the calibration inputs one image at a time, as onnxruntime.quantization.CalibrationDataReader does."""

    def __init__(self, images: Sequence[npt.NDArray[np.uint8]], inputs: set[str]) -> None:
        others = {TARGETS: np.array([[0]])}
        self._feeds = ({IMAGES: image[None], **{name: others[name] for name in inputs - {IMAGES}}} for image in images)

    def get_next(self) -> Mapping[str, npt.NDArray[Any]] | None:
        return next(self._feeds, None)


def _nodes_to_quantise(graph: GraphProto) -> list[str]:
    """Return the names of the nodes to quantise: convolutions with more than one output position, and the operators between them."""
    sizes = {value.name: value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.output)}
    weights = {weight.name for weight in graph.initializer}

    def has_extent(value: str) -> bool:
        return len(sizes[value]) == 4 and any(size.dim_value != 1 for size in sizes[value][2:])

    return [
        node.name
        for node in graph.node
        if node.op_type in _ROUNDED_AWAY
        or (node.op_type == "Conv" and has_extent(node.output[0]))
        or (node.op_type in _GATES and has_extent(node.output[0]) and weights.isdisjoint(node.input))
    ]


def _weights_for_maps(graph: GraphProto, folded: Mapping[str, Folded], needed: set[str]) -> list[NodeProto]:
    """Return nodes that dequantise the weights that the rest of the graph uses in float."""
    weights = {weight.name: weight for weight in graph.initializer}
    nodes: dict[str, NodeProto] = {}
    for node in list(graph.node):
        if node.op_type != "DequantizeLinear" or node.input[0] not in weights or len(weights[node.input[0]].dims) < 2:
            continue
        quantised, scale, zero = node.input
        name = quantised.removesuffix(_QUANTISED)
        origin = folded.get(name)
        if origin is not None:
            name = origin.weight
            unfolded = numpy_helper.to_array(weights[scale]) / np.where(origin.factors == 0, 1, origin.factors)
            scale = add_constant(graph, f"{scale}/unfolded", unfolded.astype(np.float32))
        if name in needed:
            nodes[name] = helper.make_node("DequantizeLinear", [quantised, scale, zero], [name], name=f"{name}/float", axis=0)
    return list(nodes.values())
