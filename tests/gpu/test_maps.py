"""A file answers on a GPU what it answers on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.helpers.exports.small_networks import PROVENANCE, Exports, blobs, make
from tlcli.contract.model.cuda_options import Cuda
from tlcli.contract.model.explain import explain
from tlcli.contract.model.onnx_model import Model
from tlcli.exports.exporter import describe_explainer
from tlcli.exports.onnx_writer import flat_graph, write_graph
from tlcli.exports.precision.fp16 import convert_to_fp16
from tlcli.exports.rewrite.closed_graph import describe
from tlcli.exports.trace.explainer import Explainer

TOLERANCE = 1e-3
"""Of the largest value. Float32 on both; sums come in another order."""
TF32_TOLERANCE = 2e-2
"""TF32 and float16 have 10 bits of fraction; errors of 20 layers add up."""


@pytest.mark.parametrize("layout", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize(
    ("backbone", "head", "layers"),
    [
        ("resnet18", "linear", ()),
        ("resnet18", "linear", ("layer3", "layer4")),
        ("vgg11", "linear", ()),
        ("mobilenetv2_100", "mlp:16", ()),
        ("convnext_atto", "linear", ()),
    ],
)
def test_every_map_of_the_graph(exports: Exports, backbone: str, head: str, layers: tuple[str, ...], layout: bool) -> None:
    case = exports(backbone, head, *layers)
    found = Model.open(case.model.path, device="cuda", cuda=Cuda(channels_last=layout))
    differences = differences_of(found, case.model, case.model.description.graph_maps)
    assert max(differences.values()) < TOLERANCE, differences


def test_tf32_is_near_where_little_is_behind_the_layer(exports: Exports) -> None:
    """Ten bits of fraction, and what 18 layers make of them. FEM has a threshold, which rounding crosses."""
    case = exports("resnet18")
    found = Model.open(case.model.path, device="cuda", cuda=Cuda(tf32=True))
    differences = differences_of(found, case.model, [name for name in case.model.description.graph_maps if name != "fem"])
    assert TOLERANCE / 10 < max(differences.values()) < TF32_TOLERANCE, differences


def test_half_the_digits(tmp_path: Path, exports: Exports) -> None:
    """The file in float16 beside the one in float32 on a CPU."""
    network = make("resnet18").requires_grad_(False)
    explainer, path = Explainer(network), tmp_path / "model.onnx"
    flat = flat_graph(explainer)
    convert_to_fp16(flat)
    write_graph(explainer, path, flat)
    describe(path, describe_explainer(explainer, "model", [f"class_{number}" for number in range(5)], PROVENANCE))
    reference = exports("resnet18").model
    differences = differences_of(
        Model.open(path, device="cuda"), reference, [one for one in reference.description.graph_maps if one != "fem"]
    )
    assert max(differences.values()) < TF32_TOLERANCE, differences


@pytest.mark.parametrize("method", ["eigencam", "eigengradcam", "scorecam"])
def test_maps_beside_the_graph(exports: Exports, method: str) -> None:
    case = exports("resnet18")
    model = Model.open(case.model.path, device="cuda")
    options = {"max_channels": 8} if method == "scorecam" else {}
    on_gpu, on_cpu = (explain(one, blobs(), methods=[method], **options).maps[method] for one in (model, case.model))
    assert far(on_gpu, on_cpu) < TOLERANCE


def test_it_says_that_it_runs_there(exports: Exports) -> None:
    assert Model.open(exports("resnet18").model.path).device == "cuda"


def differences_of(found: Model, reference: Model, maps: list[str] | tuple[str, ...]) -> dict[str, float]:
    """Return the largest difference of the logits, and each map's median over the images.

    Derivatives jump if a ReLU's input is nearly 0.
    """
    targets, images = np.array([[0, -1], [3, -2], [4, 1]]), blobs()
    expected = reference.run(images, targets, methods=maps)
    classes = expected.classes
    assert classes is not None
    answer = found.run(images, classes, methods=maps)
    differences = {"logits": far(answer.logits, expected.logits)}
    for name in maps:
        pairs = zip(answer.maps[name], expected.maps[name], strict=True)
        differences[name] = sorted(far(one, other) for one, other in pairs)[len(images) // 2]
    return differences


def far(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    return float(np.abs(one - other).max() / max(np.abs(other).max(), np.finfo(np.float32).tiny))
