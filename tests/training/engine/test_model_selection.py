"""Model selection, and how a report describes it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from tests.helpers.training.made_run import make_run
from tlcli.training.engine.model_selection import describe_kept, select, standard_error
from tlcli.training.metrics.scores import EpochRow
from tlcli.training.reports.html.report import write_report
from tlcli.training.runs.summary import read_summary


class Row(NamedTuple):
    val_top1: float
    val_loss: float


def kept(count: int, *figures: tuple[float, float]) -> int:
    return select([Row(*one) for one in figures], count)


def test_a_lead_of_one_image_does_not_outweigh_the_loss() -> None:
    """The head alone has 111 of 120 right at a loss of 0.58, all layers 110 of 120 at 0.24."""
    assert kept(120, (111 / 120, 0.58), (110 / 120, 0.24)) == 1
    assert kept(120, (110 / 120, 0.24), (111 / 120, 0.58)) == 0


def test_a_lead_beyond_noise_outweighs_the_loss() -> None:
    """One standard error of 92.5 % is 2.4 points for 120 images, and 0.24 points for 12,000."""
    assert kept(120, (111 / 120, 0.58), (105 / 120, 0.24)) == 0
    assert kept(12_000, (0.925, 0.58), (0.917, 0.24)) == 0


def test_ties_go_to_the_lower_loss_then_to_the_earlier_epoch() -> None:
    assert kept(100, (0.9, 0.5), (0.9, 0.4), (0.9, 0.4), (0.9, 0.45)) == 1


@pytest.mark.parametrize("top1", [0.0, 1.0])
def test_one_image_is_noise_even_at_0_or_100_per_cent(top1: float) -> None:
    assert 0.9 / 50 < standard_error(top1, 50) < 1.1 / 50


def test_the_standard_error_is_that_of_the_binomial_distribution() -> None:
    assert standard_error(0.8, 10_000) == pytest.approx(math.sqrt(0.8 * 0.2 / 10_000), rel=1e-3)


def test_accuracy_does_not_drift_down_in_steps_within_noise() -> None:
    """Each epoch is within noise of the one before, with a lower loss; the last is far below the first."""
    steps = [(0.90 - 0.02 * number, 0.5 - 0.01 * number) for number in range(10)]
    assert kept(100, *steps) == 1


def test_an_epoch_far_below_a_later_accuracy_is_replaced() -> None:
    assert kept(100, (0.60, 0.2), (0.90, 0.3)) == 1


def test_the_selection_is_the_same_after_any_interruption() -> None:
    """The epoch kept before the interruption and the rows so far decide everything that follows."""
    rows = [Row(0.5 + 0.4 * math.sin(number), 1 + math.cos(3 * number)) for number in range(1, 30)]
    for cut in range(1, 29):
        before = select(rows[:cut], 50)
        after = select(rows, 50)
        assert after == before or after >= cut


@pytest.mark.parametrize("stage", ["head", "full"])
def test_the_report_names_the_stage_that_was_kept(tmp_path: Path, stage: Literal["head", "full"]) -> None:
    other: Literal["head", "full"] = "full" if stage == "head" else "head"
    epochs = [EpochRow(stage if number == 3 else other, number, 0.1, 1.0, 0.5, 0.5, 0.9, 1.0) for number in range(1, 5)]
    run = make_run(tmp_path / "run", epochs=epochs, mode="full")
    assert read_summary(run).best_stage == stage, "as the rows say, where results.json is of an earlier version"
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**results, "best_stage": stage}))
    write_report(run)
    page = (run / "report.html").read_text()
    assert describe_kept(3, stage, "full").split(":")[0] in page
    assert ("weights are unchanged" in page) == (stage == "head")
    assert ("all layers trained, an epoch of the head alone kept" in page) == (stage == "head")
