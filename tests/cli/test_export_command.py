"""`tlcli export` with the flags that say what is explained, on a small backbone without weights."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.helpers.exports.small_networks import blobs
from tlcli.__main__ import cli
from tlcli.contract.errors import ExportError, RequestError, TlcliError
from tlcli.contract.model.onnx_model import Model

BACKBONE = ("--backbone", "test_resnet", "--weights", "none", "--image-size", 64, "--check-images", 2)


def tlcli(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Two layers, named in the wrong order; any size."""
    models = tmp_path_factory.mktemp("several")
    answer = tlcli(
        "export", *BACKBONE, "--cam-layer", "layer4", "--cam-layer", "layer2", "--dynamic-size", "--cam", "gradcam,fem,eigencam",
        "--models", models,
    )  # fmt: skip
    assert answer.exit_code == 0, answer.output
    assert answer.stdout.strip() == str(models / "test_resnet/1/model.onnx")
    return Model.open(models / "test_resnet/1/model.onnx", "cpu")


def test_layers_are_listed_and_nothing_is_exported(tmp_path: Path) -> None:
    answer = tlcli("export", *BACKBONE, "--list-cam-layers", "--models", tmp_path / "models")
    assert answer.exit_code == 0, answer.output
    head, *rows = (re.split(r"\s{2,}|\s*│\s*", line.strip(" │")) for line in answer.stdout.splitlines() if re.search(r"\w", line))
    assert head == ["layer", "module", "channels", "height", "width"]
    table = {row[0]: row[1:] for row in rows}
    assert table["layer2"] == ["Sequential", "48", "8", "8"]
    assert table["layer4"] == ["Sequential", "96", "2", "2"]
    assert rows[0][0] == "conv1.0"
    assert "fc" not in table
    assert list(tmp_path.iterdir()) == []


def test_layers_by_name_have_maps_of_their_own_and_one_together(several: Model) -> None:
    assert several.description.methods == (
        "gradcam@layer2", "gradcam@layer4", "gradcam", "fem@layer2", "fem@layer4", "fem", "eigencam@layer2", "eigencam@layer4", "eigencam",
    )  # fmt: skip
    assert several.description.map_output("gradcam").layer == "layer2+layer4"
    assert several.description.provenance.backbone == "test_resnet"
    assert several.description.provenance.weights == "none"


def test_any_size_is_taken_where_it_was_asked_for(several: Model) -> None:
    assert several.description.dynamic_size
    images = np.random.default_rng(0).integers(0, 256, (1, 96, 128, 3), dtype=np.uint8)
    maps = several.run(images, [-1], ["gradcam@layer2", "gradcam"]).maps
    assert maps["gradcam@layer2"].shape == maps["gradcam"].shape == (1, 1, 12, 16)


def test_a_model_without_maps_refuses_them(tmp_path: Path) -> None:
    answer = tlcli("export", *BACKBONE, "--cam", "none", "--models", tmp_path)
    assert answer.exit_code == 0, answer.output
    model = Model.open(tmp_path / "test_resnet/1/model.onnx", "cpu")
    assert model.description.maps == ()
    (tmp_path / "images").mkdir()
    Image.new("RGB", (80, 80), (200, 30, 30)).save(tmp_path / "images/red.png")
    plain = tlcli("predict", tmp_path / "test_resnet", tmp_path / "images")
    assert plain.exit_code == 0, plain.output
    refused = tlcli("predict", tmp_path / "test_resnet", tmp_path / "images", "--cam", "gradcam", "--output", tmp_path / "o")
    assert isinstance(refused.exception, RequestError), refused.output
    assert "has no map method 'gradcam'; it has: none: it was exported without maps" in str(refused.exception)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cam-layer", "nonsense"), "--cam-layer nonsense: in test_resnet this layer does not exist: choose from the"),
        (("--cam-layer", "layer2", "--cam-layer", "layer2"), "--cam-layer names a layer twice (layer2, layer2)"),
        (("--cam", "gradcam,lime"), "unknown map method 'lime': choose from cam, gradcam"),
        (("--cam", "cam", "--cam-layer", "layer2"), "cam needs a head that is one linear layer on the layer's spatial mean"),
    ],
)
def test_what_cannot_be_explained_is_refused(flags: tuple[str, ...], message: str, tmp_path: Path) -> None:
    answer = tlcli("export", *BACKBONE, *flags, "--models", tmp_path)
    assert isinstance(answer.exception, ExportError), answer.output
    assert str(answer.exception).startswith(message)
    assert "\n" not in str(answer.exception)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_refusal_is_one_line_and_an_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tlcli", "export", *map(str, BACKBONE), "--cam-layer", "nonsense", "--models", str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert answer.stdout == ""
    (line,) = answer.stderr.strip().splitlines()
    assert "--cam-layer nonsense: in test_resnet this layer does not exist" in line


def put_images(folder: Path, count: int = 24) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.fromarray(blobs(count, 64, 64)[number]).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A published classifier in int8."""
    home = tmp_path_factory.mktemp("small")
    images = put_images(home / "images")
    answer = tlcli(
        "export", *BACKBONE, "--precision", "int8", "--calibration", images, "--calibration-images", 6, "--max-accuracy-drop", 100,
        "--cam", "gradcam,fem,scorecam", "--models", home / "models",
    )  # fmt: skip
    assert answer.exit_code == 0, answer.output
    return home, answer


def test_a_published_classifier_is_calibrated_on_images_that_are_given(small: tuple[Path, Result]) -> None:
    home, answer = small
    assert "writing it in int8, calibrated on 6 images of images" in answer.stderr
    assert "comparing with fp32 on 18 images (images)" in answer.stderr, "those that are left over"
    found = Model.open(home / "models/test_resnet/1/model.onnx", "cpu").description.provenance.agreement
    assert found is not None
    assert (found.images, found.source, found.calibration, found.top1) == (18, "images", "6 images of images", None)
    lines = answer.stderr.splitlines()
    (head,) = (line for line in lines if line.startswith("int8 against fp32 on 18 images (images): the same predicted class for"))
    assert f"{found.agreement:.2%}" in head
    rows = [line.split() for line in lines[lines.index(head) + 1 :]]
    assert rows[0] == ["map", "images", "rank_correlation", "median"]
    assert [row[0] for row in rows[1:]] == ["gradcam", "fem"]
    assert rows[1][2] == f"{found.maps['gradcam'].rank_correlation:.4f}"


def test_commands_take_a_file_in_smaller_numbers(small: tuple[Path, Result], tmp_path: Path) -> None:
    home, _ = small
    (row,) = json.loads(tlcli("models", "--models", home / "models", "--json").stdout)
    assert row["precision"] == "int8"
    assert "precision" in tlcli("models", "--models", home / "models").stdout
    answer = tlcli(
        "predict", home / "models/test_resnet", home / "images/0.png", "--cam", "gradcam", "--output", tmp_path, "--json",
    )  # fmt: skip
    assert answer.exit_code == 0, answer.output
    (predicted,) = json.loads(answer.stdout)
    model = Model.open(home / "models/test_resnet/1/model.onnx", "cpu")
    image = model.description.preprocessing.apply(Image.open(home / "images/0.png"))
    assert predicted["score"] == pytest.approx(float(model.run(image[None]).scores.max()), abs=1e-5)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--precision", "int8"), "--precision int8 needs a few hundred images like those that the model will see: give them with"),
        (("--precision", "fp16", "--calibration", "x"), "--calibration applies only to --precision int8: add that, or leave"),
        (("--calibration", "x"), "--calibration applies only to --precision int8: add that, or leave --calibration out"),
        (("--precision", "int8", "--calibration", "no/such"), "no/such: no such file or folder"),
        (("--calibration-images", 9), "--calibration-images applies only to int8: add --precision int8, or leave it out"),
        (("--max-accuracy-drop", 3), "--max-accuracy-drop applies only to reduced precision: add --precision fp16 or int8"),
    ],
)
def test_smaller_numbers_that_cannot_be_are_refused(flags: tuple[object, ...], message: str, tmp_path: Path) -> None:
    answer = tlcli("export", *BACKBONE, *flags, "--models", tmp_path / "models")
    assert answer.exit_code != 0
    told = str(answer.exception) if isinstance(answer.exception, TlcliError) else answer.stderr.strip().splitlines()[-1]
    assert told.removeprefix("Error: ").startswith(message)
    assert not list(tmp_path.rglob("*.onnx"))


@pytest.fixture(scope="module")
def of_three(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Flags for a published classifier of three classes."""
    import timm
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "three.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), path)
    flags: list[object] = list(BACKBONE)
    flags[flags.index("none")] = path
    return (*flags, "--cam", "none")


@pytest.mark.parametrize("data", [b"\xef\xbb\xbfa\r\nb\r\nc\r\n", b'{"0": "a", "1": "b", "2": "c"}'])
def test_labels_of_a_file_are_those_of_the_classes(data: bytes, of_three: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(data)
    answer = tlcli("export", *of_three, "--labels", tmp_path / "labels", "--models", tmp_path / "models")
    assert answer.exit_code == 0, answer.output
    assert Model.open(tmp_path / "models/test_resnet/1/model.onnx", "cpu").description.labels == ("a", "b", "c")


@pytest.mark.parametrize(
    ("data", "expected"), [(b"a\nb\n", "2 labels, but the classifier of test_resnet has 3 classes"), (b"a\n\nc", "line 2 is")]
)
def test_labels_that_do_not_fit_are_refused(data: bytes, expected: str, of_three: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(data)
    answer = tlcli("export", *of_three, "--labels", tmp_path / "labels", "--models", tmp_path / "models")
    assert isinstance(answer.exception, TlcliError)
    assert expected in str(answer.exception)
    assert not (tmp_path / "models").exists()


def test_a_label_of_several_classes_is_named(of_three: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("crane\ncat\ncrane\n")
    answer = tlcli("export", *of_three, "--labels", tmp_path / "labels", "--models", tmp_path / "models")
    assert answer.exit_code == 0, answer.output
    assert "classes 0, 2 share the label 'crane'" in answer.stderr
