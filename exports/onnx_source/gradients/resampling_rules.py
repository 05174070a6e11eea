"""Gradient rules of operators that are a product with a constant matrix along each of some axes: resizing and repeating."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from tlcli.exports.onnx_source.gradients.gradient_flow import Rule, Step
from tlcli.exports.onnx_source.gradients.shape_rules import other_axis

Matrix = npt.NDArray[np.float32]


def returned_by(step: Step, gradient: str, axis: int, matrix: Matrix) -> str:
    """Multiply a gradient along an axis with a matrix `[n, m]`: from the m sizes of the output to the n sizes of the input."""
    rank = step.extent.rank
    if axis == rank - 2 and step.extent.batch < rank - 2:
        return step.op("MatMul", matrix, gradient)
    swap = list(range(rank))
    swap[axis], swap[-1] = rank - 1, axis
    last = gradient if axis == rank - 1 else step.op("Transpose", gradient, perm=swap)
    product = step.op("MatMul", last, np.ascontiguousarray(matrix.T))
    return product if axis == rank - 1 else step.op("Transpose", product, perm=swap)


def _resize(step: Step) -> None:
    source = step.extent_of(0)
    mode = step.attributes.get("coordinate_transformation_mode", b"half_pixel").decode()
    if mode == "tf_crop_and_resize":
        raise NotImplementedError(f"coordinate_transformation_mode {mode}")
    if step.attributes.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        raise NotImplementedError("keep_aspect_ratio_policy")
    scales = _scales(step, source.rank)
    gradient = step.gradient
    for axis, (old, new, scale) in enumerate(zip(source.dims, step.extent.dims, scales, strict=True)):
        if scale != 1 or old != new:
            gradient = returned_by(step, gradient, other_axis(step, axis), _resize_matrix(step, old, new, scale))
    step.give(0, gradient)


def _scales(step: Step, rank: int) -> list[float]:
    """Return the scale of each axis, from the scales or the sizes."""
    if step.input(2) is None or not step.required(2, "scales").size:
        return [new / old for old, new in zip(step.extent_of(0).dims, step.extent.dims, strict=True)]
    axes = [int(axis) % rank for axis in step.attributes.get("axes", range(rank))]
    scales = [1.0] * rank
    for axis, scale in zip(axes, step.required(2, "scales").ravel().tolist(), strict=True):
        scales[axis] = float(scale)
    return scales


def _resize_matrix(step: Step, old: int, new: int, scale: float) -> Matrix:
    """Return the matrix `[n, m]` of resizing one axis: what ONNX Runtime makes of each row of the identity."""
    import onnxruntime

    kept = {name: value for name, value in step.attributes.items() if name != "axes"}
    by_size = step.input(2) is None or not step.required(2, "scales").size
    shape: tuple[str, npt.NDArray[np.generic]] = (
        ("sizes", np.array([1, 1, old, new], dtype=np.int64)) if by_size else ("scales", np.array([1, 1, 1, scale], dtype=np.float32))
    )
    inputs = ["x", "", "", shape[0]] if by_size else ["x", "", shape[0]]
    graph = helper.make_graph(
        [helper.make_node("Resize", inputs, ["y"], **kept)],
        "resize",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, old, old])],
        [helper.make_empty_tensor_value_info("y")],
        [onnx.numpy_helper.from_array(shape[1], shape[0])],
    )
    version = step.flow.graph.model.opset_import
    model = helper.make_model(graph, opset_imports=version, ir_version=step.flow.graph.model.ir_version)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (matrix,) = session.run(["y"], {"x": np.eye(old, dtype=np.float32)[None, None]})
    result: Matrix = np.asarray(matrix, dtype=np.float32)[0, 0]
    return result


def _tile(step: Step) -> None:
    source = step.extent_of(0)
    gradient = step.gradient
    for axis, count in enumerate(step.required(1, "repeats").ravel().tolist()):
        if count != 1:
            matrix = np.tile(np.eye(source.dims[axis], dtype=np.float32), (1, int(count)))
            gradient = returned_by(step, gradient, other_axis(step, axis), matrix)
    step.give(0, gradient)


RESAMPLING_RULES: dict[str, Rule] = {"Resize": _resize, "Tile": _tile}
