"""The forward pass is extracted from a flat graph and put back: the outputs stay the same, and batch norms can be folded in between."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from tests.helpers.exports.small_networks import Case, Exports, blobs, of_three_layers
from tlcli.contract.model.description import IMAGES, LOGITS
from tlcli.exports.precision.fold_batch_norm import fold_batch_norms
from tlcli.exports.precision.forward_subgraph import put_back, take_out

BATCH = blobs(2)


@pytest.fixture
def case(exported: Exports) -> Case:
    return of_three_layers(exported)


def outputs(part: onnx.ModelProto) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in part.graph.output]
    return dict(zip(names, session.run(names, {IMAGES: BATCH}), strict=True))


def test_put_back_as_it_was_the_file_answers_the_same(case: Case) -> None:
    def there_and_back(flat: onnx.ModelProto) -> None:
        put_back(flat, [LOGITS], take_out(flat, [LOGITS]), [])

    plain, same = case.model, case.rewritten(there_and_back, "same")
    names = plain.description.graph_maps
    expected, found = plain.run(BATCH, [0, -1], names), same.run(BATCH, [0, -1], names)
    np.testing.assert_array_equal(found.logits, expected.logits)
    for name in names:
        np.testing.assert_array_equal(found.maps[name], expected.maps[name], err_msg=name)
    assert same.path.stat().st_size == pytest.approx(plain.path.stat().st_size, rel=1e-3)


def test_it_is_a_network_of_its_own_that_answers_what_the_rest_takes(case: Case) -> None:
    part = take_out(case.flat(), [LOGITS])
    onnx.checker.check_model(part, full_check=True)
    assert [value.name for value in part.graph.input] == [IMAGES]
    assert not any(attribute.HasField("g") for node in part.graph.node for attribute in node.attribute)
    answered = outputs(part)
    np.testing.assert_allclose(answered[LOGITS], case.model.run(BATCH).logits, rtol=1e-5, atol=1e-5)
    evidence = case.model.run(BATCH, [0], (), ["features@layer2", "features@layer4"]).evidence
    for name, values in evidence.items():
        np.testing.assert_allclose(answered[name], values, rtol=1e-5, atol=1e-5)


def test_batch_norms_go_into_the_convolutions_before_them(case: Case) -> None:
    part = take_out(case.flat(), [LOGITS])
    before, operators = outputs(part), Counter(node.op_type for node in part.graph.node)
    weights = {weight.name: numpy_helper.to_array(weight) for weight in part.graph.initializer}
    assert operators["BatchNormalization"] > 3, "those behind the first layer are in the graph: the backward pass takes their weights"
    folded = fold_batch_norms(part.graph)
    after = Counter(node.op_type for node in part.graph.node)
    assert (after["BatchNormalization"], after["Conv"]) == (0, operators["Conv"])
    assert len(folded) == operators["BatchNormalization"]
    for name, values in outputs(part).items():
        np.testing.assert_allclose(values, before[name], rtol=1e-4, atol=1e-4 * np.abs(before[name]).max(), err_msg=name)
    new = {weight.name: numpy_helper.to_array(weight) for weight in part.graph.initializer}
    for name, of in folded.items():
        np.testing.assert_allclose(new[name], weights[of.weight] * of.factors[:, None, None, None], rtol=1e-6)
    assert new.keys() == {value for node in part.graph.node for value in node.input if value in new}, "none is left over"


def test_a_batch_norm_that_stands_before_its_convolution_stays() -> None:
    """As in DenseNet and in pre-activation networks."""
    from onnx import TensorProto, helper

    scale = np.array([2.0, -3.0], np.float32)
    constants = {"scale": scale, "shift": scale, "mean": scale, "variance": np.abs(scale), "weight": np.ones((2, 2, 1, 1), np.float32)}
    nodes = [
        helper.make_node("BatchNormalization", ["x", "scale", "shift", "mean", "variance"], ["normed"], name="norm"),
        helper.make_node("Conv", ["normed", "weight"], ["seen"], name="conv"),
        helper.make_node("BatchNormalization", ["seen", "scale", "shift", "mean", "variance"], ["y"], name="norm_of_seen"),
    ]
    shape = ["N", 2, 4, 4]
    graph = helper.make_graph(
        nodes,
        "norms",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("y", "seen")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    assert fold_batch_norms(graph) == {}, "what the convolution answers is asked for too"
    del graph.output[1]
    (of,) = fold_batch_norms(graph).values()
    assert of.weight == "weight"
    np.testing.assert_allclose(of.factors, scale / np.sqrt(np.abs(scale) + 1e-5), rtol=1e-6)
    assert [node.op_type for node in graph.node] == ["BatchNormalization", "Conv"]
