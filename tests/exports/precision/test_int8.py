"""Convolutions in int8: all of them run in int8, weights are stored once, and maps are still those of the float file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import NodeProto, numpy_helper

from tests.helpers.exports.small_networks import Case, Exports, blobs, of_three_layers
from tlcli.contract.images import decoding
from tlcli.contract.maps.method_names import COSTLY
from tlcli.contract.model.onnx_model import Model
from tlcli.evaluation.agreement import Images, Shown, compare
from tlcli.exports.precision.int8 import quantise
from tlcli.exports.rewrite.graph_edit import with_inner

BATCH = blobs(4)
RESNET20 = ("cifar_resnet20", "cifar10_resnet20-12fca82f.th")
ImageList = list[npt.NDArray[np.uint8]]


@pytest.fixture(scope="module")
def cifar(unpacked: Callable[[str], Path]) -> dict[str, tuple[ImageList, list[int]]]:
    """Return images and labels of CIFAR-10: 100 to calibrate on, 200 to compare on."""
    found = {}
    for part, count in (("train", 10), ("test", 20)):
        classes = sorted((unpacked("cifar10") / part).iterdir())
        paths = [(path, label) for label, folder in enumerate(classes) for path in sorted(folder.iterdir())[:count]]
        found[part] = ([np.asarray(decoding.read(path)) for path, _ in paths], [label for _, label in paths])
    return found


def quantised(case: Case, images: ImageList, name: str = "int8") -> Model:
    return case.rewritten(partial(quantise, images=images), name)


def runs(model: Model, wanted: tuple[str, ...], images: npt.NDArray[np.uint8], folder: Path) -> Counter[str]:
    """Count the runs of each operator in the runtime's own profile, with the optimisations used in serving."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.log_severity_level = True, 4
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
    session.run(None, {"images": images, "wanted": np.array([[name in wanted for name in model.description.switches]])})
    events = json.loads(Path(session.end_profiling()).read_text())
    return Counter(event["args"]["op_name"] for event in events if event.get("cat") == "Node")


@pytest.mark.parametrize("layers", [(), ("layer2",)])
def test_a_trained_network_answers_and_explains_as_before(
    layers: tuple[str, ...], cifar: dict[str, tuple[ImageList, list[int]]], trained: Callable[..., Case], tmp_path: Path
) -> None:
    case = trained(*RESNET20, *layers)
    small = quantised(case, cifar["train"][0])
    images, labels = cifar["test"]
    found = compare(case.model, small, Images(len(images), "CIFAR-10", lambda number: Shown(images[number], labels[number])))
    assert found.top1_before is not None
    assert found.top1 is not None
    assert found.top1_before > 0.7
    assert found.top1_before - found.top1 <= 0.01
    assert found.agreement >= 0.95
    # In the middle, the gradient passes rectifiers whose sign rounding may change: maps that look at it position by position tell most.
    least = {"hirescam": 0.88} if layers else {}
    for name, maps in found.maps.items():
        assert maps.rank_correlation is not None
        assert maps.rank_correlation >= least.get(name, 0.92 if layers else 0.98), (name, maps)
    size, before = (model.path.stat().st_size for model in (small, case.model))
    assert size < 0.4 * before, "also where the backward pass takes the weights too"

    plain, of_activations, with_map = (runs(small, wanted, np.stack(images[:2]), tmp_path) for wanted in ((), ("fem",), ("gradcam",)))
    assert (plain["QLinearConv"], plain["Conv"], plain["ConvTranspose"]) == (19, 0, 0)
    assert (plain["BatchNormalization"], plain["Sub"], plain["Div"]) == (1, 0, 0), "the normalisation"
    assert plain["DequantizeLinear"] <= 8, "where the float head begins, and at two shortcuts that pad"
    assert of_activations["DequantizeLinear"] <= plain["DequantizeLinear"] + 1, "no weight becomes float for a map without a gradient"
    assert with_map["QLinearConv"] == 19
    assert (with_map["ConvTranspose"] > 0) == bool(layers)


def test_what_the_backward_pass_takes_is_the_weight_to_half_a_step(exported: Exports) -> None:
    """Although batch norms are folded into the weights of the forward pass."""
    case = of_three_layers(exported)
    small = quantised(case, list(BATCH))
    original = {weight.name: numpy_helper.to_array(weight) for weight in case.flat().graph.initializer}
    graph = onnx.load(str(small.path)).graph
    there = {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}
    restored = [node for node in with_inner(graph.node) if node.op_type == "DequantizeLinear" and node.name.endswith("/float")]
    taken = {node.input[1] for node in with_inner(graph.node) if node.op_type == "ConvTranspose"}
    kept = [name for name in taken - {node.output[0] for node in restored} if there[name].size > 100]
    assert len(taken) > 10
    assert kept == [], "no weight is there in float too"
    for node in restored:
        weight = next(value for name, value in original.items() if node.output[0].endswith(name))
        step = there[node.input[1]].reshape(-1, *[1] * (weight.ndim - 1))
        assert there[node.input[0]].dtype == np.int8
        assert np.all(np.abs(there[node.input[0]] * step - weight) <= 0.5001 * np.abs(step)), node.name
    names = [name for name in small.description.graph_maps if name.partition("@")[0] not in COSTLY]
    answer = small.run(BATCH, [0, -1], names)
    assert all(np.isfinite(values).all() and values.any() for values in answer.maps.values())


def test_the_same_images_make_the_same_file_and_others_another(exported: Exports) -> None:
    case = exported("test_resnet")
    first, second, other = (
        quantised(case, images, name).path.read_bytes()
        for name, images in (("first", list(BATCH)), ("second", list(BATCH)), ("other", [np.zeros_like(BATCH[0])]))
    )
    assert first == second
    assert first != other


def test_images_are_normalised_as_before(exported: Exports) -> None:
    case = exported("test_resnet")
    model = onnx.load(str(quantised(case, list(BATCH)).path))
    (normalised,) = (node.output[0] for node in model.graph.node if node.op_type == "BatchNormalization")
    model.graph.output.append(onnx.helper.make_tensor_value_info(normalised, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run([normalised], {"images": BATCH})
    np.testing.assert_allclose(found, case.network.normalise(torch.from_numpy(BATCH)), atol=2e-6)


def test_what_works_on_pooled_values_stays_in_float(exported: Exports) -> None:
    """Squeeze-and-excitation works on pooled values."""
    case = exported("regnety_002", methods=("gradcam",))
    graph = onnx.load(str(quantised(case, list(BATCH)).path)).graph
    made_by = {value: node for node in graph.node for value in node.output}

    def in_int8(node: NodeProto) -> bool:
        return node.input[1] in made_by and made_by[node.input[1]].op_type == "DequantizeLinear"

    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    gates = [name for name, module in case.network.named_modules() if name.endswith(("se.fc1", "se.fc2"))]
    assert len(gates) > 10
    assert sum(not in_int8(node) for node in convolutions) == len(gates)
    assert all(not in_int8(node) for node in graph.node if node.op_type == "Gemm")


@pytest.mark.parametrize(
    "export",
    [
        of_three_layers,
        lambda exported: exported("test_resnet", dynamic_size=True),
        lambda exported: exported("test_resnet", methods=()),
    ],
    ids=["three layers", "any size", "no maps"],
)
def test_a_batch_answers_as_its_images_do_alone(export: Callable[[Exports], Case], exported: Exports) -> None:
    small = quantised(export(exported), list(BATCH))
    names = [name for name in small.description.graph_maps if name.partition("@")[0] not in COSTLY]
    for images in (BATCH, blobs(2, 96, 128)) if small.description.dynamic_size else (BATCH,):
        together = small.run(images, [[0, -1]] * len(images), names)
        for row, image in enumerate(images):
            alone = small.run(image[None], [0, -1], names)
            np.testing.assert_allclose(alone.logits[0], together.logits[row], rtol=1e-4, atol=1e-4)
            for name, values in together.maps.items():
                np.testing.assert_allclose(alone.maps[name][0], values[row], atol=1e-3 * np.abs(values[row]).max(), err_msg=name)
