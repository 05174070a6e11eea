"""`tlcli export --plain`: the file, its name and configuration, answers of `predict` and the server, and the flags that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.helpers.exports.small_networks import blobs
from tests.helpers.service.server_process import server_process
from tlcli.__main__ import cli
from tlcli.contract.errors import ExportError, RequestError, SettingsError
from tlcli.contract.model.description import Plain
from tlcli.contract.model.onnx_model import Model
from tlcli.service import Client
from tlcli.service.types.answer import Classification

BACKBONE = ("--backbone", "test_resnet", "--weights", "none", "--image-size", 64, "--check-images", 2)

MODELS = ("test_resnet", "test_resnet-plain")


def maps_of(answer: Classification) -> dict[int, np.ndarray]:
    return {one.class_id: one.map.values for one in answer.predictions if one.map is not None and one.map.values is not None}


def tlcli(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with optional inputs and its plain forms; the first class alone; a fixed batch."""
    models = tmp_path_factory.mktemp("models")
    for flags in (
        ("--cam", "gradcam,layercam"),
        ("--plain", "gradcam,layercam"),
        ("--plain", "gradcam", "--classes", "top", "--name", "top"),
        ("--plain", "gradcam,ablationcam", "--static-batch", 2, "--name", "static"),
        ("--plain", "gradcam", "--precision", "fp16", "--name", "half"),
        ("--plain", "none", "--name", "scores"),
    ):
        answer = tlcli("export", *BACKBONE, *flags, "--output", models)
        assert answer.exit_code == 0, answer.output
    return models


def test_a_plain_graph_is_a_model_of_its_own(models: Path) -> None:
    forms = {path.name: Model.open(path / "1/model.onnx", "cpu").description.plain for path in models.iterdir()}
    assert forms == {
        "test_resnet": None,
        "test_resnet-plain": Plain(),
        "top": Plain(classes="top"),
        "static": Plain(batch=2, explained=1),
        "half": Plain(),
        "scores": Plain(classes="top"),
    }
    assert {path.name: (path / "configs/batching.pbtxt").exists() for path in models.iterdir()} == {
        name: form is None for name, form in forms.items()
    }


def test_it_was_checked_against_pytorch(models: Path) -> None:
    for name, maps in (("test_resnet-plain", {"gradcam", "layercam"}), ("static", {"gradcam", "ablationcam"}), ("scores", set())):
        parity = Model.open(models / name / "1/model.onnx", "cpu").description.provenance.parity
        assert parity is not None
        assert parity.maps.keys() == maps


def test_a_server_answers_like_the_model_with_optional_inputs(models: Path) -> None:
    image = Image.fromarray(blobs(1, 64, 64)[0])
    with server_process(models) as server, Client("127.0.0.1", server.port) as client:
        client.wait_until_ready(timeout_s=60)
        for classes in ((), (3, -2)):
            here, there = (maps_of(client.classify(image, model=name, cam="gradcam", classes=classes)) for name in MODELS)
            assert here.keys() == there.keys()
            for class_id, values in here.items():
                np.testing.assert_allclose(there[class_id], values, atol=1e-4 * np.abs(values).max())
        assert len(maps_of(client.classify(image, model="top", cam="gradcam"))) == 1
        assert maps_of(client.classify(image, model="static", cam="ablationcam", classes=(1, 2, 3))).keys() == {1, 2, 3}
        with pytest.raises(RequestError, match="explains only the top-ranked class"):
            client.classify(image, model="top", cam="gradcam", classes=(3,))
        with pytest.raises(RequestError, match="explains logits only"):
            client.classify(image, model="test_resnet-plain", cam="gradcam", softmax=True)


def test_predict_takes_it(models: Path, tmp_path: Path) -> None:
    Image.fromarray(blobs(1, 64, 64)[0]).save(tmp_path / "image.png")
    for name in ("test_resnet-plain", "top", "static"):
        answer = tlcli("predict", models / name, tmp_path / "image.png", "--cam", "gradcam", "--output", tmp_path / name)
        assert answer.exit_code == 0, answer.output
        assert list((tmp_path / name).iterdir())
    refused = tlcli("predict", models / "top", tmp_path / "image.png", "--cam", "layercam", "--output", tmp_path / "refused")
    assert "has no map method 'layercam'; it has: gradcam" in str(refused.exception)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--plain", "eigencam"), "--plain eigencam: not available, because it is computed outside the graph"),
        (("--plain", "gradcam,ablationcam", "--cam-layer", "layer2"), "--plain ablationcam: not available, because it needs a loop"),
        (("--plain", "gradcam", "--classes", "top", "--static-classes", 2), "--static-classes cannot be combined with --classes top"),
        (("--plain", "none", "--classes", "input"), "do not apply to a plain graph without maps"),
        (("--plain", "gradcam", "--static-batch", 1, "--dynamic-size"), "--static-batch and --dynamic-size cannot be combined"),
        (("--plain", "gradcam", "--classes", "top", "--precision", "fp16"), "--precision cannot be combined with --classes top"),
        (("--plain", "gradcam", "--name", "taken"), "has optional inputs, but the new version would have a plain graph with --classes"),
    ],
)
def test_what_a_plain_graph_cannot_be_is_refused(flags: tuple[object, ...], message: str, models: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").symlink_to(models / "test_resnet")
    answer = tlcli("export", *BACKBONE, *flags, "--output", tmp_path)
    assert isinstance(answer.exception, ExportError | SettingsError), answer.output
    assert message in str(answer.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--classes", "top"), "--classes: apply only to plain graphs: add --plain"),
        (("--static-batch", 2, "--static-classes", 2), "--static-batch, --static-classes: apply only to plain graphs"),
        (("--plain", "gradcam", "--cam", "fem"), "--cam cannot be combined with --plain"),
        (("--plain", "gradcam,"), "--plain 'gradcam,': expected map methods"),
    ],
)
def test_flags_that_contradict_each_other(flags: tuple[object, ...], message: str) -> None:
    answer = tlcli("export", *BACKBONE, *flags)
    assert answer.exit_code == 2
    assert message in answer.output
