"""`tlcli evaluate`: the figures follow from the file's own outputs, and mistakes get one line."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from tests.helpers.evaluation import corner_model
from tests.helpers.forked_commands import Tlcli
from tlcli.contract.images import decoding
from tlcli.evaluation.cam_dataset import label_ids

COUNT = 12


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write images of every brightness, many of them in the wrong class."""
    chance = np.random.default_rng(4)
    for label in corner_model.LABELS:
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True)
        for number in range(COUNT):
            grey = chance.integers(0, 256)
            Image.new("RGB", (corner_model.SIZE, corner_model.SIZE), (grey, grey, grey)).save(folder / f"{number:02}.png")
    (tmp_path / "data" / "dark" / "99.png").write_bytes(b"broken")
    return tmp_path / "data"


def test_the_figures_are_those_of_the_files_answers(tlcli: Tlcli, model: Path, data: Path, tmp_path: Path) -> None:
    answer = tlcli("evaluate", model, data, "--output", tmp_path / "out", "--json")
    assert answer.returncode == 0, answer.stderr
    assert "left out: dark/99.png: 6 bytes are not an image" in answer.stderr
    paths = sorted(data.glob("*/[0-8]*.png"))
    bright = np.array([corner_model.probability(corner_model.PREPROCESSING.apply(decoding.read(path))) for path in paths])
    truth = np.array([corner_model.LABELS.index(path.parent.name) for path in paths])
    guess = (bright > 0.5).astype(int)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(truth, guess)
    by_name = {row["class"]: row for row in json.loads(answer.stdout)}
    for index, label in enumerate(corner_model.LABELS):
        found = [by_name[label][name] for name in ("precision", "recall", "f1")]
        assert found == pytest.approx([precision[index], recall[index], f1[index]])
        assert by_name[label]["count"] == COUNT

    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["part"], len(summary["left_out"])) == ("all", 1)
    scores = summary["scores"]
    assert scores["confusion"] == metrics.confusion_matrix(truth, guess).tolist()
    assert scores["loss"] == pytest.approx(metrics.log_loss(truth, bright), rel=1e-4)
    assert scores["top1"] == pytest.approx((truth == guess).mean())
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    for path, value, predicted in zip(paths, bright, guess, strict=True):
        row = rows[f"{path.parent.name}/{path.name}"]
        assert (row["label"], row["predicted"]) == (path.parent.name, corner_model.LABELS[predicted])
        assert float(row["score"]) == pytest.approx(max(value, 1 - value), abs=1e-5)
    for name in ("confusion_matrix.png", "reliability.png", "mistakes.png"):
        with Image.open(tmp_path / "out" / name) as opened:
            assert opened.width > 300


def test_a_part_of_its_own(tlcli: Tlcli, model: Path, data: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    for part in ("train", "test"):
        parts.mkdir(exist_ok=True)
        (parts / part).symlink_to(data)
    of_test, of_all = (
        json.loads(tlcli("evaluate", model, parts, "--output", tmp_path / "o", "--json", "-q", *flags).stdout)
        for flags in ((), ("--part", "all"))
    )
    assert [row["count"] for row in of_test] == [COUNT, COUNT]
    assert [row["count"] for row in of_all] == [2 * COUNT, 2 * COUNT]
    refused = tlcli("evaluate", model, parts, "--part", "val", "--output", tmp_path / "o")
    assert refused.returncode == 1
    assert "it has no val part; it has: train, test: choose one, or all, with --part" in refused.stderr


def test_a_label_file_gives_the_figures_of_its_images(tlcli: Tlcli, model: Path, data: Path, tmp_path: Path) -> None:
    names = [f"{path.parent.name}/{path.name}" for path in sorted(data.glob("*/[0-8]*.png"))]
    rows = [f"{name},{name.partition('/')[0].upper()},{('dev', 'test')[number % 2]}" for number, name in enumerate(names)]
    (data / "labels.csv").write_text("\n".join(["file,class,split", *rows, rows[0]]))
    columns = ("--columns", "path=file,label=class")
    answer = tlcli("evaluate", model, data / "labels.csv", *columns, "--part", "all", "--output", tmp_path / "all", "--json")
    assert answer.returncode == 0, answer.stderr
    assert "warning: 1 row repeats an earlier one and is ignored: line 26" in answer.stderr
    by_folder = json.loads(tlcli("evaluate", model, data, "--output", tmp_path / "folder", "--json").stdout)
    assert json.loads(answer.stdout) == by_folder
    of_test = tlcli("evaluate", model, data / "labels.csv", *columns, "--output", tmp_path / "test", "--json")
    assert sum(row["count"] for row in json.loads(of_test.stdout)) == COUNT
    (data / "wrong.csv").write_text("path,label\ndark/00.png,gloomy\n")
    refused = tlcli("evaluate", model, data / "wrong.csv", "--output", tmp_path / "o")
    assert refused.stderr.endswith("wrong.csv: the model has no class gloomy; it has: dark, bright: rename the labels\n")


def test_mistakes_get_one_line(tlcli: Tlcli, model: Path, data: Path, tmp_path: Path) -> None:
    (data / "dark").rename(data / "gloomy")
    for arguments, expected in (
        ((model, data), "the model has no class gloomy; it has: dark, bright: rename the folders\n"),
        ((model, tmp_path / "nowhere"), "unknown data set"),
        ((tmp_path / "nowhere", data), "nowhere: no model found"),
    ):
        answer = tlcli("evaluate", *arguments, "--output", tmp_path / "out")
        assert answer.returncode == 1
        assert expected in answer.stderr
        assert "Traceback" not in answer.stderr
    assert not (tmp_path / "out").exists()


def counts(answer: subprocess.CompletedProcess[str]) -> dict[str, int]:
    assert answer.returncode == 0, answer.stderr
    return {row["class"]: row["count"] for row in json.loads(answer.stdout)}


def test_a_folder_of_nothing_but_a_test_part(tlcli: Tlcli, model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    data.rename(tmp_path / "only" / "test")
    answer = tlcli("evaluate", model, tmp_path / "only", "--output", tmp_path / "out", "--json", "-q")
    assert counts(answer) == {"dark": COUNT, "bright": COUNT}
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["part"] == "test"


def test_a_class_that_the_train_part_lacks_is_not_dropped(tlcli: Tlcli, model: Path, data: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    (parts / "train").mkdir(parents=True)
    (parts / "train" / "dark").symlink_to(data / "dark")
    (parts / "test").symlink_to(data)
    assert counts(tlcli("evaluate", model, parts, "--output", tmp_path / "out", "--json", "-q")) == {"dark": COUNT, "bright": COUNT}
    (data / "third").mkdir()
    Image.new("RGB", (corner_model.SIZE, corner_model.SIZE)).save(data / "third" / "0.png")
    refused = tlcli("evaluate", model, parts, "--output", tmp_path / "out", "--json", "-q")
    assert (refused.returncode, "the model has no class third; it has: dark, bright" in refused.stderr) == (1, True)


def test_a_model_without_maps_is_evaluated_too_and_nothing_is_overwritten(tlcli: Tlcli, data: Path, tmp_path: Path) -> None:
    corner_model.save(tmp_path / "plain" / "1" / "model.onnx", maps={})
    first, second = (tlcli("evaluate", tmp_path / "plain", data, "--output", tmp_path / "out") for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert f"written: {tmp_path / 'out-2'}; see" in second.stderr
    for name in ("out", "out-2"):
        with Image.open(tmp_path / name / "mistakes.png") as opened:
            assert opened.width > 300
    assert (tmp_path / "out" / "predictions.csv").read_bytes() == (tmp_path / "out-2" / "predictions.csv").read_bytes()


def test_labels_are_compared_in_nfc() -> None:
    assert label_ids(["cafe\u0301", "B"], ["b", "caf\u00e9"], "data") == {"cafe\u0301": 1, "B": 0}
    assert label_ids(["caf\u00e9"], ["cafe\u0301"], "data") == {"caf\u00e9": 0}


def test_predict_follows_the_rule_of_training(model: Path, tmp_path: Path) -> None:
    """Cover hidden files and folders, system folders, links to a folder above, pipes, other files, and wrong suffixes."""
    folder = tmp_path / "data"
    (folder / "x" / "y").mkdir(parents=True)
    Image.new("RGB", (40, 40), (250, 250, 250)).save(folder / "x" / "y" / "p0.png")
    (folder / "x" / "y" / "plain").write_bytes((folder / "x" / "y" / "p0.png").read_bytes())
    (folder / "x" / "y" / os.fsdecode(b"se\xf1al.png")).write_bytes((folder / "x" / "y" / "p0.png").read_bytes())
    (folder / "x" / "y" / "._p0.png").write_bytes(b"\0\5\x16\7")
    for hidden in (".Trash", "@eaDir"):
        (folder / hidden).mkdir()
        (folder / hidden / "p0.png").write_bytes((folder / "x" / "y" / "p0.png").read_bytes())
    (folder / "x" / "up").symlink_to("..")
    os.mkfifo(folder / "x" / "pipe.png")
    command = [sys.executable, "-m", "tlcli", "predict", model, folder, "--csv", tmp_path / "a.csv", "--npz", tmp_path / "a.npz", "--json"]
    answer = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    assert [Path(row["path"]).name for row in json.loads(answer.stdout)] == ["p0.png", "plain", r"se\xf1al.png"]
    with (tmp_path / "a.csv").open(encoding="utf-8") as file:
        assert [Path(row["path"]).name for row in csv.DictReader(file)] == ["p0.png", "plain", r"se\xf1al.png"]
    for left in (".Trash: hidden", "@eaDir: a folder of the system", "up: leads to a folder that holds it", "pipe.png: a FIFO"):
        assert left in answer.stderr
    assert "._p0.png" not in answer.stderr
    command = [sys.executable, "-m", "tlcli", "predict", model, folder / "x" / "pipe.png", folder / "x" / "y" / "p0.png"]
    answer = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 1
    assert "pipe.png: a FIFO (named pipe): expected an image file" in answer.stderr
    assert "p0.png" in answer.stdout
