"""The loop that removes one channel at a time, against a loop in NumPy, and in an exported file."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.helpers.exports.reference import Reference, relative_difference
from tests.helpers.exports.small_networks import Exports, blobs
from tlcli.exports.rewrite.ablation_loop import CHANNELS_PER_STEP, ablated_input, close_loop, due_input, step_output

CLASSES = 6


def network(channels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(channels, CLASSES)) / channels**0.5
    return weight.astype(np.float32), generator.normal(size=(channels,)).astype(np.float32)


def scores(activations: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Compute scores that are not linear in the channels: `[R, c, h, w]` to `[R, CLASSES]`."""
    return np.tanh(activations.mean((2, 3)) + bias) @ weight


def graph(channels: int) -> onnx.GraphProto:
    """Return a graph of activations A and classes: a step that scores the due pairs without their channel, and all results, doubled."""
    weight, bias = network(channels)
    layer = 3
    initializers = {
        "weight": weight, "bias": bias, "c": np.array(channels), "numbers": np.arange(channels)[None], "one": np.array([1]),
        "last_two": np.array([2, 3]), "two": np.array(2, dtype=np.float32),
    }  # fmt: skip
    steps = [
        ("Identity", ["A"], "features", {}),
        ("Identity", ["targets"], "classes", {}),
        ("Div", [due_input(layer), "c"], "image", {}),
        ("Mod", [due_input(layer), "c"], "channel", {}),
        ("Unsqueeze", ["channel", "one"], "channel_column", {}),
        ("Equal", ["channel_column", "numbers"], "gone", {}),
        ("Not", ["gone"], "kept", {}),
        ("Cast", ["kept"], "kept_float", {"to": TensorProto.FLOAT}),
        ("Unsqueeze", ["kept_float", "last_two"], "mask", {}),
        ("Gather", ["features", "image"], "own", {"axis": 0}),
        ("Mul", ["own", "mask"], "changed", {}),
        ("ReduceMean", ["changed", "last_two"], "mean", {"keepdims": 0}),
        ("Add", ["mean", "bias"], "shifted", {}),
        ("Tanh", ["shifted"], "hidden", {}),
        ("MatMul", ["hidden", "weight"], "logits", {}),
        ("Gather", ["classes", "image"], "own_classes", {"axis": 0}),
        ("GatherElements", ["logits", "own_classes"], step_output(layer), {"axis": 1}),
        ("Mul", [ablated_input(layer), "two"], "doubled", {}),
    ]
    result = helper.make_graph(
        [helper.make_node(kind, inputs, [output], name=f"node_{output}", **attributes) for kind, inputs, output, attributes in steps],
        "graph",
        [
            helper.make_tensor_value_info("A", TensorProto.FLOAT, ["N", channels, "h", "w"]),
            helper.make_tensor_value_info("targets", TensorProto.INT64, ["N", "K"]),
            helper.make_tensor_value_info(due_input(layer), TensorProto.INT64, [CHANNELS_PER_STEP]),
            helper.make_tensor_value_info(ablated_input(layer), TensorProto.FLOAT, ["N", channels, "K"]),
        ],
        [
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", channels, "h", "w"]),
            helper.make_tensor_value_info("classes", TensorProto.INT64, ["N", "K"]),
            helper.make_tensor_value_info("doubled", TensorProto.FLOAT, ["N", channels, "K"]),
            helper.make_tensor_value_info(step_output(layer), TensorProto.FLOAT, [CHANNELS_PER_STEP, "K"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    close_loop(result, layer, "features", channels, "classes")
    return result


@pytest.mark.parametrize("channels", [1, 5, 31, 32, 33, 37, 64, 100])
def test_the_loop_is_a_plain_one(channels: int) -> None:
    made = graph(channels)
    assert [value.name for value in made.input] == ["A", "targets"]
    assert [value.name for value in made.output] == ["features", "classes", "doubled"]
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    weight, bias = network(channels)
    generator = np.random.default_rng(1)
    for images, explained in ((1, 1), (3, 4), (2, 3), (5, 1)):
        activations = generator.normal(size=(images, channels, 3, 2)).astype(np.float32)
        classes = generator.integers(0, CLASSES, (images, explained))
        (doubled,) = session.run(["doubled"], {"A": activations, "targets": classes})
        assert doubled.shape == (images, channels, explained)
        for image in range(images):
            for channel in range(channels):
                without = activations[image].copy()
                without[channel] = 0
                expected = scores(without[None], weight, bias)[0, classes[image]]
                np.testing.assert_allclose(doubled[image, channel], 2 * expected, rtol=1e-4, atol=1e-5)


def test_a_file_whose_channels_do_not_fill_the_last_step(exported: Exports) -> None:
    """48 channels times three images are no multiple of the channels per step."""
    case = exported("test_resnet", "mlp:16", "layer2")
    (layer,) = case.model.description.layers
    images, targets = blobs(3), np.array([[0, 1, -1], [4, 4, 2], [3, -5, 0]])
    assert (layer.channels * len(images)) % CHANNELS_PER_STEP
    answer = case.model.run(images, targets, ["ablationcam"])
    assert answer.classes is not None
    expected = Reference(case.network, "layer2").maps("ablationcam", images, answer.classes)
    assert relative_difference(answer.maps["ablationcam"], expected) < 1e-3
