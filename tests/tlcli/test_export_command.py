"""`tlcli export` with the flags that say what is explained, on a small backbone without weights."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from contract.errors import ExportError, RequestError
from contract.model import Model
from tlcli.__main__ import cli

BACKBONE = ("--backbone", "test_resnet", "--weights", "none", "--image-size", 64, "--check-pictures", 2)


def tlcli(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Two layers, named in the wrong order; any size."""
    models = tmp_path_factory.mktemp("several")
    answer = tlcli(
        "export", *BACKBONE, "--cam-layer", "layer4", "--cam-layer", "layer2", "--dynamic-size", "--methods", "gradcam,fem,eigencam",
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
    answer = tlcli("export", *BACKBONE, "--methods", "none", "--models", tmp_path)
    assert answer.exit_code == 0, answer.output
    model = Model.open(tmp_path / "test_resnet/1/model.onnx", "cpu")
    assert model.description.maps == ()
    (tmp_path / "pictures").mkdir()
    from PIL import Image

    Image.new("RGB", (80, 80), (200, 30, 30)).save(tmp_path / "pictures/red.png")
    plain = tlcli("predict", tmp_path / "test_resnet", tmp_path / "pictures")
    assert plain.exit_code == 0, plain.output
    refused = tlcli("predict", tmp_path / "test_resnet", tmp_path / "pictures", "--cam", "gradcam", "--overlays", tmp_path / "o")
    assert isinstance(refused.exception, RequestError), refused.output
    assert "has no map method 'gradcam'; it has: none: it was exported without maps" in str(refused.exception)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cam-layer", "nonsense"), "--cam-layer nonsense: test_resnet's layer is not there: `--list-cam-layers` lists the"),
        (("--cam-layer", "layer2", "--cam-layer", "layer2"), "--cam-layer names a layer twice: layer2, layer2"),
        (("--methods", "gradcam,lime"), "unknown map method 'lime': expected some of cam, gradcam"),
        (("--methods", "cam", "--cam-layer", "layer2"), "cam needs a head that is one linear layer on the layer's spatial mean"),
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
    assert "--cam-layer nonsense: test_resnet's layer is not there" in line
