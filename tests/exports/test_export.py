"""The exported file answers as the network does: scores, logits, maps, for every head on every kind of backbone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch

from contract import pictures
from contract.description import METADATA_KEY, Provenance
from contract.errors import ExportError, ParityError, RequestError, SettingsError
from contract.methods import METHODS
from contract.model import Model
from contract.preprocessing import Preprocessing
from exports import Exported, export
from exports import parity as parity_module
from exports.methods import IN_GRAPH
from tests.exports.reference import Reference, relative_difference
from training.network import Network, NetworkConfig, build

LABELS = ["ant", "bee", "cat", "dog", "eel"]
SIZE = {"vgg16": 64, "resnet18": 64, "mobilenetv2_100": 96}
COMBINATIONS = [(backbone, head) for backbone in SIZE for head in ("linear", "mlp:256", "original")]


def make(backbone: str, head: str, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    size = SIZE.get(backbone, 64)
    network = build(
        NetworkConfig(backbone=backbone, head=head, num_classes=len(LABELS), preprocessing=Preprocessing(height=size, width=size))
    )
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():  # statistics that are not the identity, as in a trained network
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
    return network


def write(network: Network, repository: Path, images: list[npt.NDArray[np.uint8]], name: str = "model") -> Exported:
    provenance = Provenance(created="2026-01-01T00:00:00+00:00", versions={}, backbone="b", head="h", weights="none")
    return export(network, name=name, labels=LABELS, repository=repository, images=images, source="photographs", provenance=provenance)


@pytest.fixture(scope="module")
def photographs(unpacked: Callable[[str], Path]) -> list[Path]:
    return sorted((unpacked("cats-vs-dogs") / "test").rglob("*.jpg"))[::100]


@pytest.fixture(scope="module")
def drawn() -> list[npt.NDArray[np.uint8]]:
    from training.shapes import draw

    return [np.asarray(draw(index, 0, size=64).image) for index in range(4)]


@pytest.mark.parametrize(("backbone", "head"), COMBINATIONS)
def test_every_head_on_every_backbone_agrees_with_pytorch(backbone: str, head: str, photographs: list[Path], tmp_path: Path) -> None:
    network = make(backbone, head)
    images = [network.config.preprocessing.apply(pictures.read(path)) for path in photographs]
    exported = write(network, tmp_path, images[:2])
    model = Model.open(exported.path, device="cpu")
    batch = np.stack(images)
    answer = model.run(batch, [-1, -2, 3], model.description.methods)

    with torch.no_grad():
        logits = network.predict(batch).numpy()
    np.testing.assert_allclose(answer.logits, logits, atol=1e-3)
    assert (answer.logits.argmax(1) == logits.argmax(1)).all()
    np.testing.assert_allclose(answer.scores, torch.from_numpy(logits).softmax(1).numpy(), atol=1e-5)
    assert answer.classes is not None
    ranking = np.argsort(-logits, axis=1)
    np.testing.assert_array_equal(answer.classes, np.column_stack([ranking[:, 0], ranking[:, 1], np.full(len(batch), 3)]))

    reference = Reference(network, model.description.maps[0].layer)
    assert relative_difference(answer.maps["gradcam"], reference.gradcam(batch, answer.classes)) < 1e-4
    pooled_linear = head == "linear" or (head == "original" and backbone != "vgg16")
    assert ("cam" in model.description.methods) == pooled_linear
    if pooled_linear:
        weight = network.classifier.weight.detach()  # type: ignore[union-attr]
        assert relative_difference(answer.maps["cam"], reference.cam(batch, answer.classes, weight)) < 1e-4  # type: ignore[arg-type]


@pytest.mark.parametrize("head", ["linear", "mlp:256"])
def test_a_batch_answers_as_its_pictures_do_alone(head: str, drawn: list[npt.NDArray[np.uint8]], tmp_path: Path) -> None:
    model = Model.open(write(make("resnet18", head), tmp_path, drawn).path, device="cpu")
    targets = np.array([[0, -1], [-3, 2], [4, 4], [-1, -5]])
    together = model.run(np.stack(drawn), targets, model.description.methods)
    for row, image in enumerate(drawn):
        alone = model.run(image[None], targets[row : row + 1], model.description.methods)
        np.testing.assert_allclose(alone.logits[0], together.logits[row], atol=1e-5)
        np.testing.assert_array_equal(alone.classes[0], together.classes[row])  # type: ignore[index]
        for method, values in together.maps.items():
            np.testing.assert_allclose(alone.maps[method][0], values[row], atol=1e-5 * np.abs(values).max())


def test_the_file_is_whole_by_itself(drawn: list[npt.NDArray[np.uint8]], tmp_path: Path) -> None:
    network = make("resnet18", "linear")
    exported = write(network, tmp_path, drawn, name="pets")
    assert exported.path == tmp_path / "pets" / "1" / "model.onnx"
    assert sorted(path.name for path in exported.path.parent.iterdir()) == ["model.onnx"]
    assert sorted(path.name for path in exported.path.parents[1].iterdir()) == ["1", "config.pbtxt"]

    model = onnx.load(str(exported.path))
    shapes = {
        value.name: [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "images": ["N", 64, 64, 3],
        "targets": ["M", "K"],
        "wanted": [2],
        "scores": ["N", 5],
        "logits": ["N", 5],
        "classes": ["N", "K"],
        "cam": ["N", "K", 2, 2],
        "gradcam": ["N", "K", 2, 2],
        "features": ["N", 512, 2, 2],
    }
    description = json.loads({entry.key: entry.value for entry in model.metadata_props}[METADATA_KEY])
    assert description["labels"] == LABELS
    assert description["maps"][0]["layer"] == "layer4"
    assert description["provenance"]["parity"]["top1_agreement"] == 1.0
    weights = sum(parameter.numel() * 4 for parameter in network.parameters())
    assert exported.path.stat().st_size < 1.02 * weights, "a weight is stored twice"


def test_targets_and_wanted_may_be_left_out(drawn: list[npt.NDArray[np.uint8]], tmp_path: Path) -> None:
    exported = write(make("resnet18", "linear"), tmp_path, drawn)
    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_overridable_initializers()] == ["targets", "wanted"]
    images = np.stack(drawn)
    classes, logits, cam, gradcam = session.run(["classes", "logits", "cam", "gradcam"], {"images": images})
    np.testing.assert_array_equal(classes[:, 0], logits.argmax(1))
    assert cam.shape == gradcam.shape == (4, 1, 2, 2)


def test_versions_count_up_and_an_old_one_stays(drawn: list[npt.NDArray[np.uint8]], tmp_path: Path) -> None:
    network = make("resnet18", "linear")
    first = write(network, tmp_path, drawn)
    content = first.path.read_bytes()
    assert write(network, tmp_path, drawn).version == 2
    assert first.path.read_bytes() == content


def test_an_export_that_disagrees_leaves_nothing_behind(
    drawn: list[npt.NDArray[np.uint8]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity_module, "LOGITS_TOLERANCE", -1.0)  # nothing can agree to that
    with pytest.raises(ParityError, match=r"does not answer as PyTorch does on 4 pictures: logits differ by"):
        write(make("resnet18", "linear"), tmp_path, drawn)
    assert list(tmp_path.iterdir()) == []


def test_the_check_notices_another_networks_file(drawn: list[npt.NDArray[np.uint8]], tmp_path: Path) -> None:
    exported = write(make("resnet18", "linear", seed=0), tmp_path, drawn)
    measured = parity_module.measure(make("resnet18", "linear", seed=1), Model.open(exported.path, device="cpu"), drawn, "shapes")
    with pytest.raises(ParityError, match="gradcam differs by"):
        parity_module.require(measured)


def test_a_map_that_is_not_wanted_is_not_computed(drawn: list[npt.NDArray[np.uint8]], tmp_path: Path) -> None:
    """Counted in the runtime's own profile, not timed."""
    exported = write(make("resnet18", "linear"), tmp_path, drawn)

    def operators(*wanted: bool) -> int:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / "profile")
        session = onnxruntime.InferenceSession(str(exported.path), options, providers=["CPUExecutionProvider"])
        _, cam, gradcam = session.run(["scores", "cam", "gradcam"], {"images": np.stack(drawn), "wanted": np.array(wanted)})
        assert (cam.size > 0, gradcam.size > 0) == wanted
        events = json.loads(Path(session.end_profiling()).read_text())
        return sum(event.get("cat") == "Node" for event in events)

    nothing, cam, gradcam, both = operators(False, False), operators(True, False), operators(False, True), operators(True, True)
    assert nothing < cam < gradcam < both, "CAM needs no gradient, Grad-CAM does"
    assert both - nothing == (cam - nothing) + (gradcam - nothing)


def test_every_method_has_a_name_and_a_source() -> None:
    assert list(IN_GRAPH) == list(METHODS)
    assert all("arXiv:" in method.source for method in METHODS.values())


def test_methods_that_the_head_does_not_allow_are_refused(drawn: list[npt.NDArray[np.uint8]], tmp_path: Path) -> None:
    provenance = Provenance(created="now", versions={}, backbone="b", head="h", weights="none")
    arguments = {"labels": LABELS, "repository": tmp_path, "images": drawn, "source": "shapes", "provenance": provenance}
    with pytest.raises(ExportError, match="cam needs a head that is one linear layer on the spatial mean; the head 'mlp:256' of resnet18"):
        export(make("resnet18", "mlp:256"), name="m", methods=["cam"], **arguments)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"'\.\./m' is no model name"):
        export(make("resnet18", "linear"), name="../m", **arguments)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_requests_that_do_not_fit_are_refused(drawn: list[npt.NDArray[np.uint8]], tmp_path: Path) -> None:
    model = Model.open(write(make("resnet18", "linear"), tmp_path, drawn).path, device="cpu")
    with pytest.raises(RequestError, match=r"takes uint8 \[N, 64, 64, 3\]; uint8 \[1, 32, 64, 3\] came"):
        model.run(np.zeros((1, 32, 64, 3), dtype=np.uint8))
    with pytest.raises(RequestError, match="has no class 5: expected 0 to 4"):
        model.run(drawn[0][None], [5], ["cam"])
    with pytest.raises(RequestError, match="has no map eigencam; it has: cam, gradcam"):
        model.run(drawn[0][None], [0], ["eigencam"])
