"""Fine-tuning with several labels per image, from the label file to the run folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.training.tiny_training import config, digest
from tlcli.contract.errors import DatasetError, SettingsError, TlcliError
from tlcli.training import finetune, resume
from tlcli.training.data.drawing.draw_scene import LABEL_BOXES_FILE, write_scenes
from tlcli.training.data.load import load_dataset
from tlcli.training.engine.callbacks import Callback
from tlcli.training.metrics.multi_label import MultiLabelScores
from tlcli.training.metrics.scores import EpochRow
from tlcli.training.runs.comparison import compare
from tlcli.training.runs.load_run import load_run
from tlcli.training.runs.run_folder import read_config, read_results
from tlcli.training.runs.summary import read_summary

COUNTS = {"train": 96, "val": 40, "test": 40}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), COUNTS, size=32)


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetune(config(scenes, tmp_path_factory.mktemp("runs") / "run", mode="full")).path


def rewritten(scenes: Path, name: str, change: Any) -> Path:
    """Write the rows of the label file, changed, to another file in its folder."""
    with scenes.open(newline="") as file:
        header, *rows = csv.reader(file)
    path = scenes.parent / name
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *filter(None, map(change, rows))])
    return path


def test_every_label_of_the_file_is_in_the_data_set(scenes: Path) -> None:
    dataset = load_dataset(config(scenes))
    boxes = json.loads((scenes.parent / LABEL_BOXES_FILE).read_text())
    assert dataset.task == "multi-label"
    for part in dataset.parts.values():
        assert part.labels.shape == (len(part), 8)
        assert all(part.labels_of(index, dataset.classes) == tuple(sorted(boxes[name])) for index, name in enumerate(part.names))
    assert any(not boxes[name] for name in dataset.train.names), "an image without a label is one of none of the classes"


def test_a_one_hot_table_is_the_same_data_set(scenes: Path) -> None:
    dataset = load_dataset(config(scenes))
    path = scenes.parent / "one_hot.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *dataset.classes, "split"])
        for name, part in dataset.parts.items():
            writer.writerows([image, *labels, name] for image, labels in zip(part.names, part.labels.tolist(), strict=True))
    assert load_dataset(config(path)).fingerprint == dataset.fingerprint


def test_held_out_images_have_the_labels_in_proportion(scenes: Path) -> None:
    path = rewritten(scenes, "no_val.csv", lambda row: [row[0], row[1], "train" if row[2] == "val" else row[2]])
    dataset = load_dataset(config(path, val_fraction=0.25))
    train, val = (np.array(part.class_counts(8)) for part in (dataset.train, dataset.val))
    assert not set(dataset.train.names) & set(dataset.val.names)
    assert np.abs(val / (train + val) - 0.25).max() < 0.03
    assert len(dataset.val) / (len(dataset.val) + len(dataset.train)) == pytest.approx(0.25, abs=0.06)


def test_groups_stay_together(scenes: Path) -> None:
    with scenes.open(newline="") as file:
        rows = list(csv.DictReader(file))
    path = scenes.parent / "groups.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "labels", "group"), *((row["path"], row["labels"], n // 4) for n, row in enumerate(rows))])
    dataset = load_dataset(config(path))
    group = {row["path"]: number // 4 for number, row in enumerate(rows)}
    assert not {group[name] for name in dataset.train.names} & {group[name] for name in dataset.val.names}


def test_a_subset_of_the_classes_keeps_the_images_without_them(scenes: Path) -> None:
    dataset = load_dataset(config(scenes, classes=("star", "bar")))
    assert len(dataset.train) == COUNTS["train"]
    assert dataset.train.labels.shape[1] == 2


def test_one_label_in_each_row_can_be_trained_with_several(scenes: Path) -> None:
    def with_one(row: list[str]) -> list[str] | None:
        labels = row[1].split("|")
        return [row[0], labels[int(Path(row[0]).stem) % len(labels)], row[2]] if row[1] else None

    path = rewritten(scenes, "first.csv", with_one)
    assert load_dataset(config(path)).task == "single-label"
    assert load_dataset(config(path, task="multi-label")).task == "multi-label"
    with pytest.raises(DatasetError, match=r"labels.csv: line \d+: \d labels .*but --task single-label expects one"):
        load_dataset(config(scenes, task="single-label"))


def test_the_run_records_map_thresholds_and_the_task(run: Path, scenes: Path) -> None:
    results = read_results(run)
    assert results is not None
    assert read_config(run).task == "multi-label"
    val, test = results.val, results.test
    assert isinstance(val, MultiLabelScores)
    assert isinstance(test, MultiLabelScores)
    assert test.thresholds == val.thresholds, "fitted on the validation part alone"
    assert sorted(results.metrics) == sorted(f"{part}_{name}" for part in ("val", "test") for name in ("mean_ap", "macro_f1", "loss"))
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert list(rows[0]) == ["stage", "epoch", "lr", "train_loss", "val_loss", "val_mean_ap"]
    best = max(rows, key=lambda row: float(row["val_mean_ap"]))
    assert int(best["epoch"]) == results.best_epoch
    assert float(best["val_mean_ap"]) == pytest.approx(val.mean_ap)


def test_the_network_read_back_has_the_recorded_scores(run: Path) -> None:
    loaded = load_run(run)
    part = loaded.dataset().val
    images = np.stack([loaded.network.config.preprocessing.apply(part.load(index)) for index in range(len(part))])
    scores = loaded.network.predict(images).sigmoid().numpy()
    rows = list(csv.DictReader((run / "predictions.csv").open()))
    for index, row in enumerate(rows):
        assert row["label"] == "|".join(part.labels_of(index, loaded.classes))
        assert [float(row[f"score {name}"]) for name in loaded.classes] == pytest.approx(scores[index], abs=1e-4)


def test_the_report_shows_each_labels_average_precision_and_threshold(run: Path) -> None:
    page, results = (run / "report.html").read_text(), read_results(run)
    assert results is not None
    assert isinstance(results.val, MultiLabelScores)
    assert f"{results.val.classes[0].threshold:.3f}" in page
    assert "mAP" in page
    for absent in ("top-1", "Confusion", ">nan"):
        assert absent not in page


def test_a_resumed_run_has_the_same_weights(scenes: Path, run: Path, tmp_path: Path) -> None:
    class Interrupt(Callback):
        def on_epoch_end(self, row: EpochRow, is_best: bool) -> None:
            if row.epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(config(scenes, tmp_path / "cut", mode="full"), callbacks=[Interrupt()])
    again = resume(tmp_path / "cut")
    assert digest(load_run(again.path).network) == digest(load_run(run).network)
    assert (again.path / "metrics.csv").read_text() == (run / "metrics.csv").read_text()


@pytest.mark.parametrize("settings", [{}, {"loss": "asymmetric"}, {"class_weights": "balanced"}], ids=["plain", "asymmetric", "balanced"])
def test_a_head_is_trained_on_frozen_features(scenes: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    result = finetune(config(scenes, tmp_path / "run", mode="feature-extraction", **settings))
    assert 0 < result.metrics["val_mean_ap"] <= 1


@pytest.mark.parametrize("setting", ["mixup", "cutmix"])
def test_images_with_several_labels_can_be_mixed(scenes: Path, tmp_path: Path, setting: str) -> None:
    result = finetune(config(scenes, tmp_path / "run", mode="full", epochs=1, **{setting: 0.5}))
    assert np.isfinite(result.metrics["val_loss"])


def test_runs_are_compared_by_map_and_by_images_with_all_labels_right(scenes: Path, run: Path, tmp_path: Path) -> None:
    other = finetune(config(scenes, tmp_path / "other", mode="full", seed=1)).path
    compared = compare([read_summary(run), read_summary(other)])
    assert compared.pairs is not None
    assert compared.pairs.count == COUNTS["val"]
    results = read_results(run)
    assert results is not None
    assert isinstance(results.val, MultiLabelScores)
    assert compared.rows[0]["val_mean_ap"] == results.val.mean_ap
    assert compared.pairs.top1[0] == pytest.approx(results.val.exact_match)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "focal"}, "--loss focal needs one label per image.*: use --loss asymmetric"),
        ({"sampler": "balanced"}, "--sampler balanced needs one label per image"),
        ({"logit_adjustment": 1.0}, "--logit-adjustment 1 needs one label per image"),
        ({"mode": "feature-extraction", "head_search": True}, "--head-search needs one label per image"),
        ({"loss": "asymmetric", "class_weights": "balanced"}, "--loss asymmetric cannot be combined with --class-weights balanced"),
        ({"limit": 5}, "--limit 5 counts the images of each class"),
    ],
)
def test_settings_for_one_label_are_refused_in_one_line(scenes: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TlcliError, match=message) as error:
        finetune(config(scenes, tmp_path / "run", **{"mode": "full", **settings}))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_asymmetric_loss_and_the_task_are_refused_where_images_have_one_label(tmp_path: Path) -> None:
    from tests.helpers.training.tiny_training import put_colours

    colours = put_colours(tmp_path / "colours", 4, 2, 2)
    with pytest.raises(SettingsError, match="--loss asymmetric needs several labels per image"):
        finetune(config(colours, tmp_path / "run", mode="full", loss="asymmetric"))
    with pytest.raises(DatasetError, match="--task multi-label needs a label file"):
        finetune(config(colours, tmp_path / "run", mode="full", task="multi-label"))
