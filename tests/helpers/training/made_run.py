"""Run folders without a training, filled with random predictions."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tlcli.training.metrics.scores import EpochRow, Scores, score
from tlcli.training.settings.config import FinetuneConfig

FINGERPRINT = "f1" * 32


def make_run(
    folder: Path,
    labels: Sequence[str] = ("cat", "dog", "owl"),
    *,
    count: int = 60,
    sure: float = 3.0,
    seed: int = 0,
    test: bool = True,
    epochs: Sequence[EpochRow] | None = None,
    fingerprint: str = FINGERPRINT,
    stopped: str | None = None,
    **asked: Any,
) -> Path:
    """Write a finished run, with predictions biased to the truth by `sure`; the images and their classes do not depend on `seed`."""
    folder.mkdir(parents=True)
    truth = torch.randint(0, len(labels), (count,), generator=torch.Generator().manual_seed(5))
    scores, logits = drawn_scores(labels, truth, sure, seed)
    config = {
        "format_version": 1,
        "created": "2026-05-04T03:02:01+00:00",
        "asked": FinetuneConfig(**{"backbone": "resnet18", "dataset": "/data/pets", **asked}).model_dump(mode="json"),
        "network": {"backbone": "resnet18", "preprocessing": {"height": 224, "width": 224, "crop_pct": 0.9}},
        "plan": {"head_epochs": 4, "head_lr": 0.0003, "full_epochs": 0, "full_lr": 0.5, "weight_decay": 0.05, "workers": 2},
        "classes": list(labels),
        "device": "cpu",
        "weights_fingerprint": "aa" * 32,
        "dataset_fingerprint": fingerprint,
        "versions": {"tlcli": "0.1.0", "torch": "2.9.0"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    results = {
        "best_epoch": 3,
        "stopped": stopped,
        "val": scores.model_dump(mode="json"),
        "test": scores.model_dump(mode="json") if test else None,
        "seconds": {"features": 90.5, "head": 9.5},
        "images": {"train": 4 * count, "val": count, **({"test": count} if test else {})},
        "left_out": 1,
    }
    (folder / "results.json").write_text(json.dumps(results))
    rows = default_epochs() if epochs is None else epochs
    write_csv(folder / "metrics.csv", EpochRow._fields[:-1], [row[:-1] for row in rows])
    values, predicted = logits.softmax(1).max(1)
    answers = [
        (f"val/{labels[label]}/{number}.jpg", labels[label], labels[guess], round(value, 6))
        for number, (label, guess, value) in enumerate(zip(truth.tolist(), predicted.tolist(), values.tolist(), strict=True))
    ]
    write_csv(folder / "predictions.csv", ("name", "label", "predicted", "score"), answers)
    split = {"parts": {"train": {label: [f"train/{label}/{n}.jpg" for n in range(7)] for label in labels}}}
    (folder / "split.json").write_text(json.dumps(split))
    Image.new("RGB", (300, 200), "white").save(folder / "mistakes.png")
    return folder


def drawn_scores(labels: Sequence[str], truth: torch.Tensor, sure: float, seed: int) -> tuple[Scores, torch.Tensor]:
    """Return the scores of random predictions, and their logits `[n, C]`."""
    logits = torch.randn(len(truth), len(labels), generator=torch.Generator().manual_seed(seed))
    logits[range(len(truth)), truth] += sure
    return score(logits, truth, tuple(labels)), logits


def default_epochs() -> list[EpochRow]:
    """Return four epochs of the head, the third of which is the best."""
    return [
        EpochRow("head", number, 0.1, 1.2 / number, 0.5 + 0.1 * number, 1.1 if number != 3 else 0.5, 0.6 if number != 3 else 0.9, 1.0)
        for number in range(1, 5)
    ]


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
