"""`predict` and `classify` with the flags that say how a map is made, on a small model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.helpers.service.sample_images import BLUE, RED, encode, scene
from tests.helpers.service.toy_model import PREPROCESSING, SIZE, ToyModel
from tlcli.__main__ import cli
from tlcli.contract.errors import RequestError, SettingsError
from tlcli.contract.images.decoding import read
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.model.explain import explain
from tlcli.contract.model.onnx_model import Model
from tlcli.service import ServerSettings, in_background

CHANNELS = 24


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models: one of a fixed size, one that takes any."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("fixed", "dynamic"):
        ToyModel.make(seed=5, channels=CHANNELS, dynamic=name == "dynamic").save(folder / name / "1/model.onnx", name)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name, color in (("a", RED), ("b", BLUE)):
        (tmp_path / f"{name}.png").write_bytes(encode(scene(color, (30, 20, 90, 70))))
    return tmp_path


def tlcli(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def kept(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def inputs(images: Path, preprocessing: Preprocessing = PREPROCESSING) -> np.ndarray:
    return np.stack([preprocessing.apply(read(images / f"{name}.png")) for name in "ab"])


@pytest.mark.parametrize("flags", [(), ("--max-channels", 5), ("--softmax",)])
@pytest.mark.parametrize("method", ["scorecam", "faster_scorecam"])
def test_predict_keeps_the_maps_and_tells_of_progress(models: Path, images: Path, method: str, flags: tuple[object, ...]) -> None:
    (images / "c.png").write_bytes(b"no image")
    answer = tlcli("predict", models / "fixed", images, "--cam", method, *flags, "--npz", images / "o.npz", "--output", images / "o")
    assert answer.exit_code == 1, answer.output
    assert "left out" in answer.stderr
    channels = 5 if "--max-channels" in flags else {"scorecam": CHANNELS, "faster_scorecam": 10}[method]
    assert f"Scoring channels: {3 * channels} of {3 * channels} in" in answer.stderr
    expected = explain(
        Model.open(models / "fixed/1/model.onnx", "cpu"),
        inputs(images),
        methods=[method],
        softmax="--softmax" in flags,
        max_channels=5 if "--max-channels" in flags else None,
    )
    np.testing.assert_allclose(kept(images / "o.npz")["maps"], expected.maps[method], rtol=1e-5, atol=1e-6)
    assert len(list((images / "o").glob(f"*.{method}.*.png"))) == 2


def test_other_maps_count_images(models: Path, images: Path) -> None:
    answer = tlcli("predict", models / "fixed", images, "--cam", "eigengradcam", "--softmax", "--output", images / "o")
    assert answer.exit_code == 0, answer.output
    assert "Classifying: 2 of 2 in" in answer.stderr


def test_classify_asks_for_the_same(models: Path, images: Path) -> None:
    flags = ("--cam", "scorecam", "--softmax", "--max-channels", 4, "--cam-class", "red", "--json")
    with in_background(ServerSettings(models=models, port=0)) as port:
        remote = tlcli("classify", images / "a.png", "--model", "fixed", "--port", port, *flags, "--output", images / "remote")
    local = tlcli("predict", models / "fixed", images / "a.png", *flags, "--output", images / "local")
    assert remote.exit_code == local.exit_code == 0, remote.output + local.output
    (there,), (here,) = (json.loads(answer.stdout)[0]["overlays"] for answer in (remote, local))
    assert Path(there).read_bytes() == Path(here).read_bytes()


@pytest.mark.parametrize("command", ["predict", "classify"])
def test_flags_without_a_map_that_takes_them_are_refused(models: Path, images: Path, command: str) -> None:
    first = (command, models / "fixed", images) if command == "predict" else (command, images)
    for flags, message in [
        (("--softmax",), "--softmax sets what a map explains: add a map with --cam"),
        (("--cam-class", "red"), "--cam-class sets the class that a map explains: add a map with --cam"),
        (("--output", "o"), "--output is the folder for overlays of maps: add a map with --cam"),
        (("--cam", "fem", "--softmax"), "--softmax: fem is the same for every class"),
        (("--cam", "eigencam,fem", "--cam-class", "red"), "--cam-class: eigencam, fem is the same for every class"),
        (("--max-channels", 3), "add one of them with --cam"),
        (("--cam", "gradcam", "--max-channels", 3), "--max-channels applies to scorecam and faster_scorecam"),
    ]:
        answer = tlcli(*first, *flags)
        assert isinstance(answer.exception, SettingsError), answer.output
        assert message in str(answer.exception)
    assert tlcli(*first, "--cam", "scorecam", "--max-channels", 0).exit_code == 2


def test_another_size_for_a_model_that_takes_any(models: Path, images: Path) -> None:
    answer = tlcli(
        "predict",
        models / "dynamic",
        images,
        "--image-size",
        96,
        "--cam",
        "gradcam",
        "--npz",
        images / "o.npz",
        "--output",
        images / "o",
    )
    assert answer.exit_code == 0, answer.output
    found = kept(images / "o.npz")
    assert found["maps"].shape == (2, 1, 12, 12)
    larger = PREPROCESSING.model_copy(update={"height": 96, "width": 96})
    expected = Model.open(models / "dynamic/1/model.onnx", "cpu").run(inputs(images, larger), methods=["gradcam"])
    np.testing.assert_allclose(found["logits"], expected.logits, atol=1e-6)
    np.testing.assert_allclose(found["maps"], expected.maps["gradcam"], atol=1e-6)


def test_another_size_for_a_model_that_does_not(models: Path, images: Path) -> None:
    answer = tlcli("predict", models / "fixed", images, "--image-size", 96)
    assert isinstance(answer.exception, RequestError)
    assert str(answer.exception) == "--image-size 96: model 'fixed' takes images of 64 x 64 only (width x height)"
    assert tlcli("predict", models / "fixed", images, "--image-size", SIZE).exit_code == 0


@pytest.mark.parametrize("flags", [("--cam", "gradcam", "--cam", "cam"), ("--cam", "gradcam, cam"), ("--cam", "gradcam,gradcam,cam")])
def test_several_maps_are_all_drawn_and_kept(models: Path, images: Path, flags: tuple[str, ...]) -> None:
    where = ("--npz", images / "o.npz", "--output", images / "o", "--cam-class", "red", "--json")
    answer = tlcli("predict", models / "fixed", images / "a.png", *flags, *where)
    assert answer.exit_code == 0, answer.output
    names = [f"a.{method}.red.png" for method in ("gradcam", "cam")]
    assert [Path(path).name for path in json.loads(answer.stdout)[0]["overlays"]] == names
    assert {path.name for path in (images / "o").iterdir()} == set(names)
    expected = Model.open(models / "fixed/1/model.onnx", "cpu").run(inputs(images)[:1], [0], ["gradcam", "cam"])
    found = kept(images / "o.npz")
    for method in ("gradcam", "cam"):
        np.testing.assert_allclose(found[f"maps_{method}"], expected.maps[method], atol=1e-6)
    assert "maps" not in found


def test_all_draws_every_map_of_the_model_in_process_and_over_the_wire(models: Path, images: Path) -> None:
    methods = Model.open(models / "fixed/1/model.onnx", "cpu").description.methods
    assert len(methods) > 3
    flags = ("--cam", "all", "--max-channels", 3, "--json")
    local = tlcli("predict", models / "fixed", images / "a.png", *flags, "--output", images / "local")
    with in_background(ServerSettings(models=models, port=0)) as port:
        remote = tlcli("classify", images / "a.png", "--model", "fixed", "--port", port, *flags, "--output", images / "remote")
    assert remote.exit_code == local.exit_code == 0, remote.output + local.output
    drawn = {folder: {path.name: path.read_bytes() for path in (images / folder).iterdir()} for folder in ("local", "remote")}
    assert drawn["local"] == drawn["remote"]
    assert sorted(name.split(".")[1] for name in drawn["local"]) == sorted(methods)


def test_the_table_of_several_classes_is_kept_as_csv(models: Path, images: Path) -> None:
    answer = tlcli("predict", models / "fixed", images / "a.png", "--top-k", 2, "--json", "--csv", images / "o.csv")
    assert answer.exit_code == 0, answer.output
    head, *rows = (line.split(",") for line in (images / "o.csv").read_text().splitlines())
    assert head == ["path", "rank", "label", "class_id", "score"]
    expected = [
        [row["path"], str(row["rank"]), row["label"], str(row["class_id"]), f"{row['score']:.6f}"] for row in json.loads(answer.stdout)
    ]
    assert rows == expected
    assert len(rows) == 2


def test_what_cannot_be_read_is_left_out_and_the_rest_is_answered(models: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlcli.contract.files.atomic_file._PIPE_WAIT_S", 0.1)
    os.mkfifo(images / "pipe.png")
    for path, kind in ((images / "pipe.png", "a FIFO (named pipe)"), (Path("/dev/null"), "a device")):
        local = tlcli("predict", models / "fixed", path, images / "a.png", "--json")
        with in_background(ServerSettings(models=models, port=0)) as port:
            remote = tlcli("classify", path, images / "a.png", "--model", "fixed", "--port", port, "--json")
        for answer in (local, remote):
            assert answer.exit_code == 1, answer.output
            assert f"left out: {path}: {kind}: expected an image file" in answer.stderr
            assert [row["path"] for row in json.loads(answer.stdout)] == [str(images / "a.png")]
