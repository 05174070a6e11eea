"""`tlcli evaluate`: the figures are those of the file's own answers, and mistakes get one line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from contract import pictures
from tests.evaluation import toy

COUNT = 12


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tlcli", "evaluate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Pictures of every brightness; which class they lie in is often wrong."""
    chance = np.random.default_rng(4)
    for label in toy.LABELS:
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True)
        for number in range(COUNT):
            grey = chance.integers(0, 256)
            Image.new("RGB", (toy.SIZE, toy.SIZE), (grey, grey, grey)).save(folder / f"{number:02}.png")
    (tmp_path / "data" / "dark" / "99.png").write_bytes(b"broken")
    return tmp_path / "data"


def test_the_figures_are_those_of_the_files_answers(model: Path, data: Path, tmp_path: Path) -> None:
    answer = run(model, data, "--out", tmp_path / "out", "--json")
    assert answer.returncode == 0, answer.stderr
    assert "left out: dark/99.png: 6 bytes came that are no picture" in answer.stderr
    paths = sorted(data.glob("*/[0-8]*.png"))
    bright = np.array([toy.probability(toy.PREPROCESSING.apply(pictures.read(path))) for path in paths])
    truth = np.array([toy.LABELS.index(path.parent.name) for path in paths])
    guess = (bright > 0.5).astype(int)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(truth, guess)
    by_name = {row["class"]: row for row in json.loads(answer.stdout)}
    for index, label in enumerate(toy.LABELS):
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
        assert (row["label"], row["predicted"]) == (path.parent.name, toy.LABELS[predicted])
        assert float(row["score"]) == pytest.approx(max(value, 1 - value), abs=1e-5)
    for name in ("confusion_matrix.png", "reliability.png", "mistakes.png"):
        with Image.open(tmp_path / "out" / name) as opened:
            assert opened.width > 300


def test_a_part_of_its_own(model: Path, data: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    for part in ("train", "test"):
        parts.mkdir(exist_ok=True)
        (parts / part).symlink_to(data)
    of_test, of_all = (
        json.loads(run(model, parts, "--out", tmp_path / "o", "--json", "-q", *flags).stdout) for flags in ((), ("--part", "all"))
    )
    assert [row["count"] for row in of_test] == [COUNT, COUNT]
    assert [row["count"] for row in of_all] == [2 * COUNT, 2 * COUNT]
    refused = run(model, parts, "--part", "val", "--out", tmp_path / "o")
    assert refused.returncode == 1
    assert "it has no val part; it has: train, test: choose one, or all, with --part" in refused.stderr


def test_mistakes_get_one_line(model: Path, data: Path, tmp_path: Path) -> None:
    (data / "dark").rename(data / "gloomy")
    for arguments, expected in (
        ((model, data), "the model has no class gloomy; it has: dark, bright: rename the folders\n"),
        ((model, tmp_path / "nowhere"), "unknown data set"),
        ((tmp_path / "nowhere", data), "nowhere: no model here"),
    ):
        answer = run(*arguments, "--out", tmp_path / "out")
        assert answer.returncode == 1
        assert expected in answer.stderr
        assert "Traceback" not in answer.stderr
    assert not (tmp_path / "out").exists()
