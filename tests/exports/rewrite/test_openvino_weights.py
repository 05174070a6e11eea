"""The backward pass takes square weights as values of their own, and the products stay the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import GraphProto, TensorProto, helper, numpy_helper

from tests.helpers.exports.small_networks import make, write
from tlcli.exports.rewrite.graph_edit import with_inner
from tlcli.exports.rewrite.openvino_weights import separate_square_weights
from tlcli.exports.rewrite.shared_weights import LEAST_BYTES

LARGE = round((LEAST_BYTES / 4) ** 0.5)


def gradient_in_a_branch(size: int) -> GraphProto:
    """Return a graph of `y = x W^T`, and of `g = y W` in a branch."""
    weight = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32) / size**0.5
    then = helper.make_graph(
        [helper.make_node("MatMul", ["y", "W"], ["inner"], name="mm")],
        "then",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, [None, size])],
    )
    otherwise = helper.make_graph(
        [helper.make_node("Identity", ["y"], ["same"], name="id")],
        "otherwise",
        [],
        [helper.make_tensor_value_info("same", TensorProto.FLOAT, [None, size])],
    )
    return helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "W"], ["y"], name="gemm", transB=1),
            helper.make_node("If", ["asked"], ["g"], name="if", then_branch=then, else_branch=otherwise),
        ],
        "graph",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", size]),
            helper.make_tensor_value_info("asked", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name in ("y", "g")],
        [numpy_helper.from_array(weight, "W")],
    )


@pytest.mark.parametrize("size", [48, LARGE])
@pytest.mark.parametrize("count", [1, 5])
def test_the_products_are_the_same(size: int, count: int) -> None:
    graph = gradient_in_a_branch(size)
    weight = numpy_helper.to_array(graph.initializer[0]).astype(np.float64)
    separate_square_weights(graph)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).normal(size=(count, size)).astype(np.float32)
    y, g = session.run(None, {"x": x, "asked": np.array(True)})
    np.testing.assert_allclose(y, x @ weight.T, atol=1e-4)
    np.testing.assert_allclose(g, x @ weight.T @ weight, atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "head", "layer", "methods"),
    [
        ("resnet18", "linear", "layer2", ["gradcam", "ablationcam", "reciprocam"]),  # a backward pass and the two loops
        ("vgg11", "mlp:512", "features.14", None),
    ],
)
def test_no_square_weight_is_packed_for_both_passes(
    backbone: str, head: str, layer: str, methods: list[str] | None, tmp_path: Path
) -> None:
    network = make(backbone, head)
    model = onnx.load(str(write(network, tmp_path / "model.onnx", methods=methods, layers=[layer]).path))
    square = {one.name for one in model.graph.initializer if len(one.dims) > 1 and one.dims[0] == one.dims[1]}
    nodes = list(with_inner(model.graph.node))
    backwards = {node.input[1] for node in nodes if node.op_type in ("ConvTranspose", "MatMul")}
    forwards = {node.input[1] for node in nodes if node.op_type in ("Conv", "Gemm")}
    assert square & forwards, "else nothing is tested"
    assert not square & forwards & backwards
    assert any(name.endswith("/same") for name in backwards), "the way back needs some of them"
