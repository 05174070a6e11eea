"""Division of images into batches and micro-batches, and batch norms in small batches."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.training.reading_work import drawn
from tests.helpers.training.tiny_training import config, put_colours
from tlcli.contract.errors import SettingsError
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training import find_lr, finetune
from tlcli.training.data.dataloader import batch_count, image_batches
from tlcli.training.engine.lr_finder import RateCurve, try_rates
from tlcli.training.engine.stage import Stage
from tlcli.training.engine.step import StepOptions, Stepper
from tlcli.training.runtime.progress import ProgressFactory

pytestmark = pytest.mark.usefixtures("blank_figures")

RESNEST = "resnest14d"
"""Network whose attention has a batch norm on pooled features: one value per channel and image."""


def sizes(images: int, batch_size: int, micro_batch_size: int | None = None, share: tuple[int, int] = (0, 1)) -> list[int]:
    loaded = image_batches(
        drawn("fine", images),
        Preprocessing(height=8, width=8),
        batch_size=batch_size,
        workers=0,
        micro_batch_size=micro_batch_size,
        share=share,
    )
    return [len(labels) for _, labels, _ in loaded]


@pytest.mark.parametrize(
    ("images", "batch_size", "expected"),
    [
        (33, 32, [17, 16]),
        (64, 32, [32, 32]),
        (65, 32, [22, 22, 21]),
        (5, 2, [3, 2]),
        (3, 2, [3]),
        (6, 2, [2, 2, 2]),
        (4, 3, [2, 2]),
        (7, 3, [3, 2, 2]),
        (3, 1, [1, 1, 1]),
        (1, 8, [1]),
    ],
)
def test_batches_are_about_equal_and_none_has_one_image(images: int, batch_size: int, expected: list[int]) -> None:
    assert sizes(images, batch_size) == expected
    assert batch_count(images, batch_size) == len(expected)


def test_no_combination_of_sizes_leaves_a_batch_of_one_image() -> None:
    for batch_size in range(2, 12):
        for images in range(2, 80):
            count = batch_count(images, batch_size)
            assert images // count >= 2
            assert -(-images // count) <= batch_size + (batch_size == 2)


class Seen(nn.Module):
    """Network that records the size of each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.sizes: list[int] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(inputs))
        return self.layer(inputs)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("images", "micro_batch_size", "expected"),
    [(12, 8, [6, 6]), (17, 8, [6, 6, 5]), (9, 2, [3, 2, 2, 2]), (3, 2, [3]), (8, 8, [8]), (3, 1, [1, 1, 1])],
)
def test_a_step_runs_micro_batches_of_the_batch_size(images: int, micro_batch_size: int, expected: list[int]) -> None:
    model = Seen()
    stepper = Stepper(model, torch.optim.SGD(model.parameters(), lr=0.1), StepOptions(micro_batch_size=micro_batch_size))
    stepper.begin()
    assert stepper.step(0, torch.randn(images, 4), torch.zeros(images, dtype=torch.int64)).count == images
    assert model.sizes == expected


def test_each_process_has_its_share_of_each_micro_batch() -> None:
    """17 images run in micro-batches of 6, 6 and 5 on two processes; each process divides its share at the same points."""
    first, second = (sizes(17, 17, micro_batch_size=8, share=(rank, 2)) for rank in (0, 1))
    assert (first, second) == ([9], [8])
    assert [len(part) for part in np.array_split(np.arange(9), 3)] == [3, 3, 3]
    assert [len(part) for part in np.array_split(np.arange(8), 3)] == [3, 3, 2]


# ---- batch norms


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_colours(tmp_path_factory.mktemp("nine"), train=3, val=1, test=0)


def asked(data: Path, output: Path | None = None, **settings: Any) -> Any:
    return config(data, output, **{"backbone": RESNEST, "mode": "full", "epochs": 1, "head": "linear", **settings})


@pytest.mark.parametrize("settings", [{"batch_size": 2}, {"batch_size": 2, "accumulate": 4}, {"batch_size": 8, "accumulate": 8}])
def test_norms_with_one_value_per_image_train_on_any_number_of_images(nine: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    assert finetune(asked(nine, tmp_path / "run", **settings)).results.best_epoch == 1


def test_the_lr_finder_trains_on_any_number_of_images(nine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def few_steps(stage: Stage, progress: ProgressFactory) -> RateCurve:
        seen.extend(len(batch.labels) for batch in stage.batches(0))
        with suppress(SettingsError):  # the loss need not fall in so few
            try_rates(stage, progress, steps=5)
        return RateCurve((1e-3, 1e-2), (1.0, 1.0), (1.0, 1.0), 1e-3)

    monkeypatch.setattr("tlcli.training.fine_tuning.try_rates", few_steps)
    find_lr(asked(nine, batch_size=2), tmp_path / "rates.png")
    assert seen == [3, 2, 2, 2]


def test_a_batch_size_of_one_is_rejected_before_anything_is_written(nine: Path, tmp_path: Path) -> None:
    message = r"^--batch-size 1: batch norm \S+ of resnest14d has a single value per channel .*: use --batch-size 2 or more$"
    with pytest.raises(SettingsError, match=message):
        finetune(asked(nine, tmp_path / "run", batch_size=1, accumulate=4))
    assert not (tmp_path / "run").exists()
    with pytest.raises(SettingsError, match=message):
        find_lr(asked(nine, batch_size=1), tmp_path / "rates.png")


def test_a_batch_size_of_one_works_if_norms_have_more_values_per_image(nine: Path, tmp_path: Path) -> None:
    finetune(config(nine, tmp_path / "run", mode="full", epochs=1, batch_size=1, image_size=64))


def test_a_norm_that_receives_one_image_is_reported_in_one_line() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3))
    stepper = Stepper(model, torch.optim.SGD(model.parameters(), lr=0.1), StepOptions())
    stepper.begin()
    with pytest.raises(SettingsError, match=r"single value per channel to train on \(input size \[1, 4\]\): use a larger --batch-size"):
        stepper.step(0, torch.randn(1, 4), torch.zeros(1, dtype=torch.int64))
