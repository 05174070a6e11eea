"""Summary of a run, read without its network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.training.made_run import make_run
from tests.helpers.training.tiny_training import config, put_colours
from tlcli.contract.errors import SettingsError
from tlcli.training import finetune
from tlcli.training.reports.html.report import write_report
from tlcli.training.runs.summary import read_summary


@pytest.mark.parametrize(("mode", "epochs"), [("feature-extraction", 3), ("full", 3)])
def test_the_summary_has_the_figures_of_the_run(mode: str, epochs: int, tmp_path: Path) -> None:
    data = put_colours(tmp_path / "colours", train=8)
    result = finetune(config(data, tmp_path / "run", mode=mode, epochs=epochs, seed=3))
    record = read_summary(result.path)
    for name, part in record.parts.items():
        scores = getattr(result.results, name)
        for figure in ("count", "top1", "top5", "loss", "macro_f1", "confusion", "calibration"):
            assert getattr(part, figure) == getattr(scores, figure)
        assert [one.model_dump() for one in part.classes] == [one.model_dump() for one in scores.classes]
        assert part.ece == scores.calibration.ece
        assert part.right == sum(scores.confusion[n][n] for n in range(3))
    assert (record.results.best_epoch, record.results.images) == (result.results.best_epoch, result.results.images)
    assert [one.epoch for one in record.epochs] == list(range(1, epochs + 1))
    assert record.epochs[record.results.best_epoch - 1].val_top1 == pytest.approx(result.results.val.top1)
    assert len(record.predictions) == result.results.val.count
    assert sum(one.label == one.predicted for one in record.predictions) == record.results.val.right
    plan = json.loads((result.path / "config.json").read_text())["plan"]
    settings = record.settings
    assert (settings["epochs"], settings["image_size"], settings["num_classes"], settings["seed"]) == (epochs, 32, 3, 3)
    stage = "full" if mode == "full" else "head"
    assert (settings["lr"], settings["label_smoothing"]) == (plan[f"{stage}_lr"], plan[f"{stage}_label_smoothing"])
    assert settings["weight_decay"] == plan["weight_decay"]
    assert settings["hflip"] == plan["augmentation"]["hflip"]
    assert write_report(result.path).stat().st_size > 50_000


def test_unknown_fields_of_another_version_are_ignored(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    before = read_summary(run)
    for name in ("config.json", "results.json"):
        kept = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps({**kept, "format_version": 9, "weather": {"sky": "grey"}}))
    assert read_summary(run) == before


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "metrics.csv").write_bytes(b"stage,epoch\nhead,\xff\n")
    with pytest.raises(SettingsError, match=r"metrics.csv: cannot be read: .*: damaged, or not written by tlcli: start a new run"):
        read_summary(run)
