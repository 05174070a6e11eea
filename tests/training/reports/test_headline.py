"""Where classes are lopsided, the terminal, the report and the model card lead with macro recall, and say why."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard
from sklearn.metrics import balanced_accuracy_score

from tests.helpers.training.made_run import make_run
from tests.helpers.training.tiny_training import BACKBONE, put_colours, put_image_of
from tests.training.reports.test_model_card import describe
from tlcli.cli.commands.finetune import command
from tlcli.training import load_run
from tlcli.training.metrics.headline import why_macro_recall
from tlcli.training.reports.html.report import write_report
from tlcli.training.reports.model_card import model_card
from tlcli.training.runs.summary import read_summary

pytestmark = pytest.mark.usefixtures("blank_figures")

WHY = "it weighs every class equally, and the training part has 10 images of red and 3 of blue"


@pytest.mark.parametrize(
    ("counts", "leads"),
    [({"a": 30, "b": 10}, False), ({"a": 31, "b": 10}, True), ({"a": 31, "b": 11, "c": 0}, False), ({"a": 5}, False), ({}, False)],
)
def test_macro_recall_leads_above_three_times_the_smallest_class(counts: dict[str, int], leads: bool) -> None:
    assert (why_macro_recall(counts) is not None) == leads


def test_macro_recall_is_the_balanced_accuracy(tmp_path: Path) -> None:
    record = read_summary(make_run(tmp_path / "run", sure=1.0))
    truth, guess = [row.label for row in record.predictions], [row.predicted for row in record.predictions]
    assert record.parts["val"].macro_recall == pytest.approx(balanced_accuracy_score(truth, guess))


def finetuned(tmp_path: Path, more: int) -> tuple[Path, str, dict[str, float]]:
    """Run the command on classes of 3, 3 and `3 + more` images. Return the run, what it said, and its last line as JSON."""
    data = put_colours(tmp_path / "data", train=3, val=3, test=2)
    for number in range(more):
        put_image_of(data / "train" / "red" / f"more{number}.png", "red", 100 + number)
    words = ["--backbone", BACKBONE, "--weights", "none", "--image-size", "32", "--epochs", "1", "--workers", "0", "--device", "cpu"]
    answer = CliRunner().invoke(command, [str(data), *words, "--output", str(tmp_path / "run"), "--no-export", "--json"])
    assert answer.exit_code == 0, answer.output
    (row,) = json.loads(answer.stdout)
    return tmp_path / "run", answer.stderr, row


def test_a_lopsided_run_leads_with_macro_recall(tmp_path: Path) -> None:
    path, said, row = finetuned(tmp_path, more=7)
    run = load_run(path)
    assert run.results.test is not None
    recall = run.results.val.macro_recall
    assert list(row) == ["run", "val_macro_recall", "test_macro_recall", "val_top1", "val_loss", "test_top1", "test_loss"]
    assert row["val_macro_recall"] == recall
    assert f"val: macro recall {recall:.2%}, {run.results.val.top1:.2%} of 9 images correct" in said
    assert f"macro recall leads, because {WHY}" in said
    report = write_report(path).read_text(encoding="utf-8")
    tiles = report.index("Test macro recall"), report.index("Test top-1")
    assert tiles[0] < tiles[1]
    assert f"Macro recall leads, because {WHY}." in report
    card = model_card(run, describe(run))
    assert f"Macro recall leads, because {WHY}." in card
    assert f"images: macro recall {100 * run.results.test.macro_recall:.2f} %; " in card
    header = ModelCard(card).data
    assert header.metrics[0] == "balanced_accuracy"
    (value,) = (one.metric_value for one in header.eval_results if (one.dataset_split, one.metric_type) == ("test", "balanced_accuracy"))
    assert value == pytest.approx(np.mean([scores.recall for scores in run.results.test.classes]), abs=1e-6)


def test_a_balanced_run_leads_with_top_1(tmp_path: Path) -> None:
    path, said, row = finetuned(tmp_path, more=6)
    run = load_run(path)
    assert list(row) == ["run", "val_top1", "val_loss", "test_top1", "test_loss"]
    for text in (said, write_report(path).read_text(encoding="utf-8"), model_card(run, describe(run))):
        assert "macro recall" not in text.lower()
