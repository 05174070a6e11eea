"""A run in int8: calibrated on its training images, compared on its validation images and boxes, and then served, asked and judged."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.helpers.training import tiny_training
from tlcli.__main__ import cli
from tlcli.contract.model.onnx_model import Model
from tlcli.service import Client
from tlcli.training import finetune, load_run


def tlcli(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`, `images` with a box for every one, and `models` with version 1 in float32 and version 2 in int8 of `tiny`."""
    home = tmp_path_factory.mktemp("smaller")
    dataset = tiny_training.put_colours(home / "images", train=16, val=6)
    names = [path.relative_to(dataset).as_posix() for path in dataset.rglob("*.png")]
    (dataset / "boxes.json").write_text(json.dumps({name: [8, 8, 36, 32] for name in names}))
    finetune(tiny_training.config(dataset, home / "run", mode="full", epochs=4, lr=1e-2))
    common = ("export", home / "run", "--name", "tiny", "--models", home / "models", "--check-images", 4)
    for more in ((), ("--precision", "int8", "--calibration-images", 20, "--max-accuracy-drop", 6, "--min-map-correlation", 0.8)):
        answer = tlcli(*common, *more)
        assert answer.exit_code == 0, answer.output
    return home


@pytest.fixture(scope="module")
def port(home: Path) -> Iterator[int]:
    command = [sys.executable, "-m", "tlcli", "serve", str(home / "models"), "--port", "0", "--versions", "all"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        yield next(int(line.rsplit(":", 1)[1]) for line in process.stderr if "listening on" in line)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def test_it_was_calibrated_and_compared_on_the_runs_own_images(home: Path) -> None:
    plain, small = (Model.open(home / f"models/tiny/{version}/model.onnx", "cpu") for version in (1, 2))
    assert (plain.description.precision, small.description.precision) == ("fp32", "int8")
    found = small.description.provenance.agreement
    assert found is not None
    assert found.calibration == "20 images of images, training part"
    val = load_run(home / "run").dataset().val
    images = np.stack([small.description.preprocessing.apply(val.load(number)) for number in range(len(val))])
    first, second = (model.run(images).logits.argmax(1) for model in (plain, small))
    assert (found.images, found.source) == (len(val), "images, validation part")
    assert found.top1_before == pytest.approx((first == val.labels).mean())
    assert found.top1 == pytest.approx((second == val.labels).mean())
    assert found.agreement == pytest.approx((first == second).mean())
    assert found.maps.keys() == set(small.description.graph_maps)
    for name, maps in found.maps.items():
        assert maps.pointing is not None, name
        assert maps.pointing_before is not None, name
    card = (home / "models/tiny/README.md").read_text()
    assert "compute in int8" in card


def test_the_list_of_models_shows_each_files_own_accuracy(home: Path) -> None:
    plain, small = json.loads(tlcli("models", "--models", home / "models", "--json").stdout)
    metrics = Model.open(home / "models/tiny/1/model.onnx", "cpu").description.provenance.metrics
    found = Model.open(home / "models/tiny/2/model.onnx", "cpu").description.provenance.agreement
    assert found is not None
    assert (plain["top1"], plain["top1_part"]) == (
        metrics["test_top1"] if "test_top1" in metrics else metrics["val_top1"],
        plain["top1_part"],
    )
    assert (small["precision"], small["top1"], small["top1_part"]) == ("int8", found.top1, "val")


def test_the_server_answers_what_the_file_does(home: Path, port: int) -> None:
    model = Model.open(home / "models/tiny/2/model.onnx", "cpu")
    path = next((home / "images/test").rglob("*.png"))
    image = model.description.preprocessing.apply(Image.open(path))
    expected = model.run(image[None], [-1], ["gradcam"])
    with Client("127.0.0.1", port) as client:
        client.wait_until_ready(timeout_s=60)
        answer = client.classify(path, model="tiny", cam="gradcam")
    best = answer.predictions[0]
    assert answer.version == "2"
    assert best.score == pytest.approx(float(expected.scores.max()), abs=1e-5)
    assert best.map is not None
    np.testing.assert_allclose(best.map.values, expected.maps["gradcam"][0, 0], atol=1e-4 * expected.maps["gradcam"].max())


def test_it_is_evaluated_as_any_other(home: Path) -> None:
    answer = tlcli("evaluate", home / "models/tiny/2", home / "images", "--out", home / "evaluate", "--json")
    assert answer.exit_code == 0, answer.output
    asked = ("--methods", "gradcam,eigencam", "--limit", 3, "--out", home / "cam", "--json")
    maps = tlcli("evaluate-cam", home / "models/tiny/2", home / "images", *asked)
    assert maps.exit_code == 0, maps.output
    rows = json.loads(maps.stdout)
    assert [row["method"] for row in rows] == ["gradcam", "eigencam", "random", "centre"]
    (row,) = (row for row in json.loads(tlcli("models", "--models", home / "models", "--json").stdout) if row["version"] == 2)
    assert row["precision"] == "int8"
