"""Map methods as ONNX nodes, each one small function of the same inputs: the counterpart of `tlcli.exports.trace.map_methods`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tlcli.exports.onnx_source.graph.node_writer import NodeWriter, Operand, sizes

_POSITIONS = sizes(-2, -1)


@dataclass(frozen=True)
class CamValues:
    """Names of the inputs of the map methods, for N images and K classes per image.

    writer: writer for the nodes.
    height, width: size of the layer.
    activations: activations A of the layer, `[N, c, h, w]`.
    gradients: gradients dy/dA of each class's score y, `[N, K, c, h, w]`; None if they are the same at all positions.
    mean_gradients: means of the gradients over the positions, `[N, K, c]`.
    class_weights: rows of the last layer's weight, `[N, K, c]`; None unless the head is one linear layer on the spatial mean.
    scores: scores y of the classes, `[N, K]`.
    ablated: scores y with each channel set to zero in turn, `[N, c, K]`; None without Ablation-CAM.
    classes: ids of the classes, `[N, K]`.
    """

    writer: NodeWriter
    height: int
    width: int
    activations: str
    gradients: str | None
    mean_gradients: str
    class_weights: str | None
    scores: str
    ablated: str | None
    classes: str

    def op(self, operator: str, *inputs: Operand, **attributes: object) -> str:
        """Add a node; see `NodeWriter.op`."""
        return self.writer.op(operator, *inputs, **attributes)

    def activations_of_classes(self) -> str:
        """Return the activations as `[N, 1, c, h, w]`."""
        return self.op("Unsqueeze", self.activations, sizes(1))

    def weighted_sum(self, weights: str, activations: str) -> str:
        """Return the sum over the channels of activations `[N, c, h, w]` with weights `[N, K, c]`, as `[N, K, h, w]`."""
        flat = self.op("Reshape", activations, sizes(0, 0, -1))
        return self.op("Reshape", self.op("MatMul", weights, flat), sizes(0, 0, self.height, self.width))

    def rectified(self, value: str) -> str:
        """Return `max(value, 0)`."""
        return self.op("Relu", value)

    def divided(self, above: str, below: str) -> str:
        """Return the quotient, and 0 where the divisor is 0."""
        zero = self.op("Equal", below, 0.0)
        return self.op("Where", zero, 0.0, self.op("Div", above, self.op("Where", zero, 1.0, below)))


def cam(values: CamValues) -> str:
    """Write CAM, `sum_k W[class, k] A_k`.

    Returns:
        Name of the maps `[N, K, h, w]`, as from all functions of `FORMULAS`.
    """
    assert values.class_weights is not None
    return values.weighted_sum(values.class_weights, values.activations)


def gradcam(values: CamValues) -> str:
    """Write Grad-CAM, `relu(sum_k mean(g_k) A_k)`."""
    return values.rectified(values.weighted_sum(values.mean_gradients, values.activations))


def gradcam_plus_plus(values: CamValues) -> str:
    """Write Grad-CAM++, `relu(sum_k w_k A_k)` with `w_k = sum(g / (2 + sum(A_k) g))` over the positions with g > 0."""
    totals = values.op("ReduceSum", values.activations, _POSITIONS, keepdims=1)
    if values.gradients is None:
        positive = values.rectified(values.mean_gradients)
        below = values.op("Add", values.op("Mul", positive, values.op("Reshape", totals, sizes(0, 1, -1))), 2.0)
        weights = values.op("Mul", values.divided(positive, below), float(values.height * values.width))
    else:
        positive = values.rectified(values.gradients)
        below = values.op("Add", values.op("Mul", positive, values.op("Unsqueeze", totals, sizes(1))), 2.0)
        weights = values.op("ReduceSum", values.divided(positive, below), _POSITIONS, keepdims=0)
    return values.rectified(values.weighted_sum(weights, values.activations))


def xgradcam(values: CamValues) -> str:
    """Write XGrad-CAM, `relu(sum_k w_k A_k)` with `w_k = sum(g_k A_k) / sum(A_k)`, and 0 for channels whose sum is 0."""
    totals = values.op("Unsqueeze", values.op("ReduceSum", values.activations, _POSITIONS, keepdims=0), sizes(1))
    if values.gradients is None:
        weights = values.op("Where", values.op("Equal", totals, 0.0), 0.0, values.mean_gradients)
    else:
        products = values.op("Mul", values.gradients, values.activations_of_classes())
        weights = values.divided(values.op("ReduceSum", products, _POSITIONS, keepdims=0), totals)
    return values.rectified(values.weighted_sum(weights, values.activations))


def hirescam(values: CamValues) -> str:
    """Write HiRes-CAM, `relu(sum_k g_k A_k)` at each position."""
    if values.gradients is None:
        return gradcam(values)
    products = values.op("Mul", values.gradients, values.activations_of_classes())
    return values.rectified(values.op("ReduceSum", products, sizes(2), keepdims=0))


def gradcam_elementwise(values: CamValues) -> str:
    """Write element-wise Grad-CAM, `sum_k relu(g_k A_k)` at each position."""
    if values.gradients is not None:
        products = values.op("Mul", values.gradients, values.activations_of_classes())
        return values.op("ReduceSum", values.rectified(products), sizes(2), keepdims=0)
    sums = []
    for operator in ("Identity", "Neg"):  # a product is positive if both factors have the same sign
        gradients, activations = (values.rectified(values.op(operator, value)) for value in (values.mean_gradients, values.activations))
        sums.append(values.weighted_sum(gradients, activations))
    return values.op("Add", *sums)


def layercam(values: CamValues) -> str:
    """Write Layer-CAM, `relu(sum_k relu(g_k) A_k)` at each position."""
    if values.gradients is None:
        return values.rectified(values.weighted_sum(values.rectified(values.mean_gradients), values.activations))
    products = values.op("Mul", values.rectified(values.gradients), values.activations_of_classes())
    return values.rectified(values.op("ReduceSum", products, sizes(2), keepdims=0))


def fem(values: CamValues) -> str:
    """Write FEM, `relu(sum_k w_k A_k)` with the fraction w_k of positions where `A_k > mean + 2 sigma`. It is the same for every class."""
    mean = values.op("ReduceMean", values.activations, _POSITIONS, keepdims=1)
    centred = values.op("Sub", values.activations, mean)
    norm = values.op("ReduceL2", centred, _POSITIONS, keepdims=1)
    bound = values.op("Mul", norm, 2 / math.sqrt(values.height * values.width))
    shares = values.op("ReduceMean", values.op("Cast", values.op("Greater", centred, bound), to=1), _POSITIONS, keepdims=0)
    single = values.rectified(values.weighted_sum(values.op("Unsqueeze", shares, sizes(1)), values.activations))
    count = values.op("Concat", sizes(1), values.op("Shape", values.classes, start=1, end=2), sizes(1, 1), axis=0)
    return values.op("Expand", single, count)


def ablationcam(values: CamValues) -> str:
    """Write Ablation-CAM, `relu(sum_k w_k A_k)` with `w_k = (y - y without channel k) / |y|`, and 0 where y is 0."""
    assert values.ablated is not None
    scores = values.op("Unsqueeze", values.scores, sizes(2))
    lost = values.op("Sub", scores, values.op("Transpose", values.ablated, perm=[0, 2, 1]))
    weights = values.divided(lost, values.op("Abs", scores))
    return values.rectified(values.weighted_sum(weights, values.activations))


def fuse(writer: NodeWriter, maps: list[str], sizes_of_maps: list[tuple[int, int]]) -> str:
    """Write the fused map of several layers: the maximum of their maps, each scaled to [0, 1] and enlarged to the largest size."""
    height, width = max(size[0] for size in sizes_of_maps), max(size[1] for size in sizes_of_maps)
    result = ""
    for name, size in zip(maps, sizes_of_maps, strict=True):
        low = writer.op("ReduceMin", name, _POSITIONS, keepdims=1)
        extent = writer.op("Sub", writer.op("ReduceMax", name, _POSITIONS, keepdims=1), low)
        some = writer.op("Greater", extent, 0.0)
        unit = writer.op("Where", some, writer.op("Div", writer.op("Sub", name, low), writer.op("Where", some, extent, 1.0)), 0.0)
        if size != (height, width):
            scales = np.array([1, 1, height / size[0], width / size[1]], dtype=np.float32)
            unit = writer.op("Resize", unit, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
        result = writer.op("Max", result, unit) if result else unit
    return result


FORMULAS: dict[str, Callable[[CamValues], str]] = {
    "cam": cam,
    "gradcam": gradcam,
    "gradcam_plus_plus": gradcam_plus_plus,
    "xgradcam": xgradcam,
    "hirescam": hirescam,
    "gradcam_elementwise": gradcam_elementwise,
    "layercam": layercam,
    "fem": fem,
    "ablationcam": ablationcam,
}
