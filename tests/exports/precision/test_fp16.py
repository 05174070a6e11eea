"""The forward pass in float16: outputs are the same up to rounding, and casts are at its ends only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.helpers.exports.small_networks import LABELS, Case, Exports, blobs, of_three_layers
from tlcli.contract.images import decoding
from tlcli.contract.maps.method_names import COSTLY
from tlcli.evaluation.agreement import Images, Shown, compare
from tlcli.exports.precision.fp16 import convert_to_fp16
from tlcli.exports.rewrite.graph_edit import producers

BATCH = blobs(4)
CASES: dict[str, Callable[[Exports], Case]] = {
    "a ResNet": lambda exported: exported("resnet18"),
    "another depth": lambda exported: exported("resnet26", methods=("gradcam", "layercam", "ablationcam")),
    "hidden layers, several layers": of_three_layers,
    "gates": lambda exported: exported("mobilenetv3_small_100"),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, exported: Exports) -> Case:
    return CASES[request.param](exported)


def test_there_are_casts_at_the_ends_and_none_in_between(case: Case) -> None:
    graph, before = (onnx.load(str(path)).graph for path in (case.rewritten(convert_to_fp16, "half").path, case.model.path))
    casts, casts_before = (sum(node.op_type == "Cast" for node in one.node) for one in (graph, before))
    assert casts == casts_before + 2, "for scores alone, in a deep network as in a shallow one"
    made_by = {value: graph.node[number].op_type for value, number in producers(graph.node).items()}
    weights = {weight.name: weight for weight in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert [made_by[node.input[0]] for node in convolutions].count("Cast") == 1
    assert {weights[node.input[1]].data_type for node in convolutions} == {TensorProto.FLOAT16}
    (last,) = (node for node in graph.node if node.op_type == "Gemm" and weights[node.input[1]].dims[0] == len(LABELS))
    assert weights[last.input[1]].data_type == TensorProto.FLOAT, "the last layer and what follows stay as they were"
    kinds, kinds_before = ({value.name: value.type.tensor_type.elem_type for value in (*one.input, *one.output)} for one in (graph, before))
    assert kinds == kinds_before


def test_weights_are_kept_once_and_answers_are_near_those_of_float32(case: Case) -> None:
    half = case.rewritten(convert_to_fp16, "half")
    several = len(half.description.layers) > 1
    names = [name for name in half.description.graph_maps if name.partition("@")[0] not in COSTLY]
    expected, found = (model.run(BATCH, range(len(LABELS)), names) for model in (case.model, half))
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-2 * np.abs(expected.logits).max())
    assert not np.array_equal(found.logits, expected.logits)
    for name in names:
        largest, apart = (np.abs(values).max((2, 3)) for values in (expected.maps[name], found.maps[name] - expected.maps[name]))
        relative = (apart / largest)[largest > 1e-3 * largest.max()]
        # Where rounding changes the sign of a rectified unit, an image has another map; most have none such.
        assert np.median(relative) < (0.15 if several else 0.01), name
    graph = onnx.load(str(half.path)).graph
    large = [weight for weight in graph.initializer if np.prod(weight.dims) > 5000 and weight.data_type == TensorProto.FLOAT]
    assert {weight.dims[0] for weight in large} <= {len(LABELS)}, "all but the last layer's: the backward pass takes them from float16"
    parameters = sum(parameter.numel() for parameter in case.network.parameters())
    assert half.path.stat().st_size < 2.2 * parameters + 500_000


@pytest.mark.parametrize(
    ("backbone", "weights", "dataset"),
    [
        ("mobilenetv2_100", "mobilenetv2_100.imagenet.safetensors", "cats-vs-dogs"),
        ("cifar_resnet20", "cifar10_resnet20-12fca82f.th", "cifar10"),
    ],
)
def test_real_networks_on_real_images(
    backbone: str, weights: str, dataset: str, shared_data: Path, unpacked: Callable[[str], Path], trained: Callable[..., Case]
) -> None:
    case = trained(backbone, weights)
    half = case.rewritten(convert_to_fp16, "half")
    found = sorted((unpacked(dataset) / "test").rglob("*.jpg"))
    found = found[:: len(found) // 40]
    preprocessing = half.description.preprocessing
    agreement = compare(
        case.model, half, Images(len(found), dataset, lambda number: Shown(preprocessing.apply(decoding.read(found[number]))))
    )
    assert agreement.agreement >= 0.97
    assert agreement.finite == 1
    for name, maps in agreement.maps.items():
        assert maps.rank_correlation is not None, name
        assert maps.rank_correlation >= 0.98, (name, maps)
