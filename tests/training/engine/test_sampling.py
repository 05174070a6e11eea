"""Balanced samples: as many images from every class, each image as often as the others of its class, and the same for every process."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.training.reading_work import drawn
from tests.helpers.training.tiny_training import config, put_colours, put_image_of
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training import finetune
from tlcli.training.data.dataloader import image_batches
from tlcli.training.data.transforms import ImageDataset
from tlcli.training.engine.sampling import epoch_order
from tlcli.training.engine.step import Stepper, StepResult
from tlcli.training.settings.augmentation import Augmentation

pytestmark = pytest.mark.usefixtures("blank_figures")

LABELS = np.array([0] * 50 + [1] * 7 + [2] * 3)


@pytest.mark.parametrize("epoch", range(5))
def test_every_class_is_drawn_equally_often(epoch: int) -> None:
    order = epoch_order("balanced", LABELS, seed=1, epoch=epoch)
    assert len(order) == len(LABELS)
    assert np.bincount(LABELS[order]).tolist() == [20, 20, 20]
    counts = Counter(order.tolist())
    for label in range(3):
        of_class = [counts[index] for index in np.flatnonzero(label == LABELS).tolist()]
        assert max(of_class) - min(of_class) <= 1


def test_the_images_that_do_not_divide_evenly_come_from_any_class() -> None:
    labels = np.array([0] * 5 + [1] * 3 + [2] * 2)
    totals = sum(np.bincount(labels[epoch_order("balanced", labels, 0, epoch)], minlength=3) for epoch in range(3000))
    np.testing.assert_allclose(totals, 10_000, rtol=0.01)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first = epoch_order("balanced", LABELS, 3, 4)
    np.random.default_rng().random()
    assert np.array_equal(first, epoch_order("balanced", LABELS, 3, 4))
    for seed, epoch in ((3, 5), (4, 4)):
        assert not np.array_equal(first, epoch_order("balanced", LABELS, seed, epoch))


def test_over_the_epochs_every_image_of_a_large_class_is_drawn() -> None:
    seen = {index for epoch in range(12) for index in epoch_order("balanced", LABELS, 0, epoch).tolist()}
    assert seen == set(range(len(LABELS)))


def test_processes_share_the_same_draw() -> None:
    """Each image of the order is loaded by exactly one of them, repetitions included."""
    part = drawn("fine", len(LABELS))
    order = epoch_order("balanced", LABELS, 0, 0)

    def indices(rank: int, world: int) -> list[list[int]]:
        loaded = image_batches(part, Preprocessing(height=8, width=8), batch_size=16, workers=0, order=order, share=(rank, world))
        return [batch.indices.tolist() for batch in loaded]

    alone = indices(0, 1)
    assert [index for batch in alone for index in batch] == order.tolist()
    for whole, *shares in zip(alone, *(indices(rank, 3) for rank in range(3)), strict=True):
        assert sorted(whole) == sorted(index for share in shares for index in share)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_repetitions_of_an_image_are_augmented_differently() -> None:
    part = drawn("fine", 201)
    dataset = ImageDataset(part, Preprocessing(height=16, width=16), Augmentation(scale=(0.1, 0.5)), seed=2, view=3)
    positions = dataset.positions(np.array([200, 0, 200, 200, 0, 1]))
    assert positions.tolist() == [200, 0, 401, 602, 201, 1]
    loaded = [dataset[position] for position in positions.tolist()]
    assert [index for _, _, index in loaded] == [200, 0, 200, 200, 0, 1]
    (first, *_), _, (second, *_), (third, *_), _, _ = loaded
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert torch.equal(first, dataset[200][0]), "the image itself is augmented as without repetitions"


@pytest.mark.parametrize("mode", ["full", "feature-extraction"])
def test_training_draws_every_class_equally_often(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = put_colours(tmp_path / "data", train=3, val=2, test=0)
    for number in range(18):
        put_image_of(data / "train" / "red" / f"more{number}.png", "red", 100 + number)
    drawn_labels: list[int] = []

    original = Stepper.step

    def counted(self: Stepper, number: int, inputs: Tensor, labels: Tensor, weights: Tensor | None = None) -> StepResult:
        drawn_labels.extend(labels.tolist())
        return original(self, number, inputs, labels, weights)

    monkeypatch.setattr(Stepper, "step", counted)
    finetune(config(data, tmp_path / "run", mode=mode, epochs=2, sampler="balanced"))
    assert np.bincount(drawn_labels).tolist() == [18, 18, 18]
