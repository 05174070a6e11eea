"""The whole road on real photographs and real weights: fine-tune, export, predict, serve, ask."""

from __future__ import annotations

import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlcli.contract.maps.method_names import METHODS, OF_ATTENTION
from tlcli.service import Client

IMAGES = 12


def tlcli(*arguments: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tlcli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=check, timeout=600)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("road")


@pytest.fixture(scope="module")
def pets(shared_data: Path, unpacked: Callable[[str], Path], home: Path) -> dict[str, Any]:
    """Return the JSON of `tlcli finetune` with its defaults on all photographs."""
    weights = shared_data / "weights" / "mobilenetv2_100.imagenet.safetensors"
    answer = tlcli(
        "finetune", "--backbone", "mobilenetv2_100", "--weights", weights, "--model-kwargs", "pad_type=same", "--mean", "0.5",
        "--std", "0.5", "--dataset", unpacked("cats-vs-dogs"), "--output", "runs/pets", "--json",
        cwd=home,
    )  # fmt: skip
    rows: list[dict[str, Any]] = json.loads(answer.stdout)
    return rows[0]


@pytest.fixture(scope="module")
def photographs(unpacked: Callable[[str], Path], home: Path) -> list[Path]:
    """Return photographs of both classes, and one that is rotated by its EXIF data."""
    found = sorted((unpacked("cats-vs-dogs") / "test").rglob("*.jpg"))
    turned = home / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(found[0]).save(turned, exif=exif)
    return [*found[:: len(found) // IMAGES][:IMAGES], turned]


@pytest.fixture(scope="module")
def server(pets: dict[str, Any], home: Path) -> Iterator[tuple[int, int]]:
    """Port and process id of `tlcli serve`."""
    command = [sys.executable, "-m", "tlcli", "serve", "models", "--port", "0"]
    with subprocess.Popen(command, cwd=home, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        port = next(int(line.rsplit(":", 1)[1]) for line in process.stderr if "listening on" in line)
        with Client("127.0.0.1", port) as client:
            client.wait_until_ready(timeout_s=60)
        yield port, process.pid
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0


def test_it_reaches_98_percent_on_the_test_photographs(pets: dict[str, Any]) -> None:
    assert pets["test_top1"] >= 0.98, pets


def test_the_run_and_the_model_are_there(pets: dict[str, Any], home: Path) -> None:
    names = {path.name for path in (home / "runs" / "pets").iterdir()}
    assert names >= {
        "config.json", "checkpoint.safetensors", "metrics.csv", "results.json", "split.json", "curves.png", "confusion_matrix.png",
        "mistakes.png", "predictions.csv",
    }  # fmt: skip
    assert pets["model"] == "models/pets/1/model.onnx"
    (model,) = json.loads(tlcli("models", "--json", cwd=home).stdout)
    assert model["name"] == "pets"
    assert model["maps"] == [method for method in METHODS if method not in OF_ATTENTION]
    assert model["top1"] == pets["test_top1"]


def test_over_grpc_the_scores_are_those_of_predict(
    pets: dict[str, Any], photographs: list[Path], server: tuple[int, int], home: Path
) -> None:
    here = json.loads(tlcli("predict", "models/pets", *photographs, "--top-k", "2", "--json", cwd=home).stdout)
    there = json.loads(tlcli("classify", *photographs, "--port", str(server[0]), "--top-k", "2", "--json", cwd=home).stdout)
    assert len(here) == len(there) == 2 * len(photographs)
    for ours, theirs in zip(here, there, strict=True):
        assert (ours["path"], ours["rank"], ours["label"]) == (theirs["path"], theirs["rank"], theirs["label"])
        assert abs(ours["score"] - theirs["score"]) <= 1e-5


def test_predict_writes_what_it_is_asked_for(pets: dict[str, Any], photographs: list[Path], home: Path) -> None:
    tlcli(
        "predict", "models/pets/1", *photographs, "--cam", "gradcam", "--cam-class", "dog", "--cam-class", "-1", "--output", "out",
        "--csv", "answers.csv", "--npz", "raw.npz",
        cwd=home,
    )  # fmt: skip
    rows = list(csv.DictReader((home / "answers.csv").open()))
    assert list(rows[0]) == ["path", "label", "class_id", "score"]
    assert [row["path"] for row in rows] == [str(path) for path in photographs]
    raw = np.load(home / "raw.npz")
    assert raw["scores"].shape == (len(photographs), 2)
    assert raw["maps"].shape == (len(photographs), 2, 7, 7)
    np.testing.assert_array_equal(raw["classes"], np.column_stack([np.ones(len(photographs)), raw["scores"].argmax(1)]))
    right = [Path(row["path"]).parent.name == row["label"] for row in rows[:IMAGES]]
    assert sum(right) >= IMAGES - 1
    for photograph in photographs:
        overlay = Image.open(home / "out" / f"{photograph.stem}.gradcam.dog.png")
        image = Image.open(photograph)
        turned = photograph.name == "turned.jpg"
        assert overlay.size == (image.size[::-1] if turned else image.size)


def test_a_batch_answers_as_its_images_do_alone(pets: dict[str, Any], photographs: list[Path], home: Path) -> None:
    tlcli("predict", "models/pets", *photographs, "--cam", "gradcam", "--npz", "all.npz", cwd=home)
    tlcli("predict", "models/pets", photographs[5], "--cam", "gradcam", "--npz", "one.npz", cwd=home)
    together, alone = np.load(home / "all.npz"), np.load(home / "one.npz")
    np.testing.assert_allclose(alone["logits"][0], together["logits"][5], atol=1e-4)
    np.testing.assert_allclose(alone["maps"][0], together["maps"][5], atol=1e-4 * np.abs(together["maps"][5]).max())


def test_images_that_cannot_be_read_are_named_and_the_others_answered(
    pets: dict[str, Any], photographs: list[Path], server: tuple[int, int], home: Path
) -> None:
    folder = home / "mixed"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(photographs[0].read_bytes())
    (folder / "b.jpg").write_bytes(photographs[1].read_bytes()[:2000])
    (folder / "c.png").write_text("text")
    (folder / "d.jpg").write_bytes(photographs[1].read_bytes())
    for command in (["predict", "models/pets", folder], ["classify", folder, "--port", str(server[0])]):
        answer = tlcli(*command, "--json", cwd=home, check=False)
        assert answer.returncode == 1
        assert [Path(row["path"]).name for row in json.loads(answer.stdout)] == ["a.jpg", "d.jpg"]
        assert "b.jpg: the image cannot be decoded" in answer.stderr
        assert "c.png: 4 bytes are not an image" in answer.stderr
        assert "Traceback" not in answer.stderr


def test_a_run_is_exported_again_as_the_next_version(pets: dict[str, Any], home: Path) -> None:
    answer = tlcli("export", "runs/pets", "--models", "again", "--name", "pets", "--cam", "gradcam", cwd=home)
    assert answer.stdout.strip() == "again/pets/1/model.onnx"
    assert tlcli("export", "runs/pets", "--models", "again", "--name", "pets", cwd=home).stdout.strip() == "again/pets/2/model.onnx"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")
def test_the_server_has_no_pytorch_in_it(server: tuple[int, int]) -> None:
    mapped = Path(f"/proc/{server[1]}/maps").read_text()
    assert "onnxruntime" in mapped
    assert "libtorch" not in mapped


def test_a_server_of_a_resnet50_is_ready_within_three_seconds(home: Path) -> None:
    tlcli("export", "--backbone", "resnet50", "--weights", "none", "--models", "big", "--check-images", "1", cwd=home)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        command = [sys.executable, "-m", "tlcli", "serve", "big", "--port", "0", "--device", "cpu"]
        with subprocess.Popen(command, cwd=home, stderr=subprocess.PIPE, text=True, env={**os.environ}) as process:
            assert process.stderr is not None
            port = next(int(line.rsplit(":", 1)[1]) for line in process.stderr if "listening on" in line)
            with Client("127.0.0.1", port) as client:
                client.wait_until_ready(timeout_s=60)
            times.append(time.perf_counter() - began)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
    assert statistics.median(times) <= 3, times
