"""A file answers on a GPU what it answers on a CPU."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from contract.explaining import explain
from contract.model import Model
from tests.exports.networks import Exports, blobs

TOLERANCE = 1e-3
"""Of the largest value. Float32 on both; sums come in another order."""


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
def test_every_map_of_the_graph(exports: Exports, backbone: str, head: str, layers: tuple[str, ...]) -> None:
    case = exports(backbone, head, *layers)
    graph_maps = case.model.description.graph_maps
    targets, images = np.array([[0, -1], [3, -2], [4, 1]]), blobs()
    asked = {"methods": graph_maps, "evidence": [one.features for one in case.model.description.layers]}
    on_cpu = case.model.run(images, targets, **asked)
    on_gpu = Model.open(case.model.path, device="cuda").run(images, targets, **asked)
    assert (on_gpu.classes == on_cpu.classes).all()
    assert far(on_gpu.logits, on_cpu.logits) < TOLERANCE
    for name in graph_maps:
        # Where a rectifier's input is 0 but for rounding, a picture's derivative jumps; see exports.parity.
        differences = sorted(far(one, other) for one, other in zip(on_gpu.maps[name], on_cpu.maps[name], strict=True))
        assert differences[len(differences) // 2] < TOLERANCE, (name, differences)
    for name in asked["evidence"]:
        assert far(on_gpu.evidence[name], on_cpu.evidence[name]) < TOLERANCE, name


@pytest.mark.parametrize("method", ["eigencam", "eigengradcam", "scorecam"])
def test_maps_beside_the_graph(exports: Exports, method: str) -> None:
    case = exports("resnet18")
    model = Model.open(case.model.path, device="cuda")
    options = {"max_channels": 8} if method == "scorecam" else {}
    on_gpu, on_cpu = (explain(one, blobs(), methods=[method], **options).maps[method] for one in (model, case.model))
    assert far(on_gpu, on_cpu) < TOLERANCE


def test_it_says_that_it_runs_there(exports: Exports) -> None:
    assert Model.open(exports("resnet18").model.path).device == "cuda"


def far(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    return float(np.abs(one - other).max() / max(np.abs(other).max(), np.finfo(np.float32).tiny))
