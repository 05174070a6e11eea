"""Figures of a run, at every size and in every script."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.training.tiny_training import config, put_colours
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training.data.dataset import Part
from tlcli.training.data.load import load_dataset
from tlcli.training.metrics.scores import EpochRow, Scores, score
from tlcli.training.models.network import Network, NetworkConfig, build
from tlcli.training.reports import figures


def rows(*stages: tuple[str, int]) -> list[EpochRow]:
    names = [name for name, count in stages for _ in range(count)]
    return [EpochRow(name, epoch, 0.1, 1 / epoch, 0.5, 1.2 / epoch, 0.4, 1.0) for epoch, name in enumerate(names, start=1)]  # type: ignore[arg-type]


def scores(classes: int, labels: tuple[str, ...] | None = None) -> Scores:
    draw = torch.Generator().manual_seed(0)
    truth = torch.randint(0, classes, (classes * 20,), generator=draw)
    logits = torch.randn(len(truth), classes, generator=draw)
    logits[range(len(truth)), truth] += 3
    return score(logits, truth, labels or tuple(f"class {number}" for number in range(classes)))


def make_image(path: Path) -> np.ndarray:  # type: ignore[type-arg]
    with Image.open(path) as opened:
        assert opened.format == "PNG"
        return np.asarray(opened.convert("RGB")).astype(int)


@pytest.mark.parametrize("stages", [[("head", 1)], [("head", 40)], [("head", 2), ("full", 5)]])
def test_curves_are_drawn_for_any_number_of_epochs(stages: list[tuple[str, int]], tmp_path: Path) -> None:
    drawn = rows(*stages)
    figures.draw_curves(drawn, len(drawn), tmp_path / "curves.png")
    assert len(np.unique(make_image(tmp_path / "curves.png").reshape(-1, 3), axis=0)) > 50


def test_the_best_epoch_is_marked(tmp_path: Path) -> None:
    def red_columns(best: int) -> float:
        figures.draw_curves(rows(("head", 9)), best, tmp_path / "curves.png")
        drawn = make_image(tmp_path / "curves.png")
        left = drawn[60:-60, : drawn.shape[1] // 2]  # the loss, below its legend's height
        red = np.argwhere((np.abs(left - np.array([0xD1, 0x49, 0x5B])) < 8).all(2))
        return float(np.median(red[:, 1]))

    assert red_columns(2) < red_columns(5) < red_columns(8)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_a_confusion_matrix_is_readable_at_any_size(classes: int, tmp_path: Path) -> None:
    figures.draw_confusion(scores(classes), "validation", tmp_path / "confusion.png")
    drawn = make_image(tmp_path / "confusion.png")
    assert 300 < drawn.shape[0] <= 2400
    dark = (drawn.sum(2) < 330) & (drawn[..., 2] > drawn[..., 0] + 40)  # the diagonal's blue
    assert dark.sum() > 15 * 15 * min(classes, 20)


def test_labels_are_drawn_literally(tmp_path: Path) -> None:
    odd = ("a $x^2$ b$", "猫", "under_score \\frac", "ok")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.draw_confusion(scores(4, odd), "validation", tmp_path / "confusion.png")


def test_the_most_confident_mistakes_come_first_then_the_least_confident_right_predictions() -> None:
    labels = torch.tensor([0, 1, 0, 1, 0])
    logits = torch.tensor([[9.0, 0.0], [2.0, 0.0], [0.0, 5.0], [0.0, 1.0], [0.0, 0.1]])  # right, wrong, wrong, right, wrong
    assert figures.most_telling(logits, labels, most=9).tolist() == [2, 1, 4, 3, 0]
    assert figures.most_telling(logits, labels, most=2).tolist() == [2, 1]


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Part:
    return load_dataset(config(put_colours(tmp_path_factory.mktemp("colours")))).val


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    size = Preprocessing(height=64, width=64)
    return build(NetworkConfig(backbone="test_resnet", head="linear", num_classes=3, preprocessing=size))


@pytest.mark.parametrize("wrong", [0, 1, 12])
def test_mistakes_are_shown_with_their_maps(wrong: int, part: Part, network: Network, tmp_path: Path) -> None:
    labels = torch.from_numpy(part.labels)
    shown = (labels + (torch.arange(len(labels)) < wrong)) % 3
    logits = torch.nn.functional.one_hot(shown, 3).float()
    figures.draw_mistakes(figures.gradcam_of(network), part, logits, ("blue", "green", "red"), tmp_path / "mistakes.png")
    drawn = make_image(tmp_path / "mistakes.png")
    assert drawn.shape[0] > 200 * 4
    assert (drawn.max(2) - drawn.min(2) > 60).mean() > 0.15  # images and heat maps, not white paper


def test_an_image_and_its_map_are_side_by_side(part: Part, network: Network) -> None:
    pair = figures._with_map(figures.gradcam_of(network), part.load(0), 1)
    left, right = pair.crop((0, 0, pair.width // 2 - 3, pair.height)), pair.crop((pair.width // 2 + 3, 0, pair.width, pair.height))
    assert left.size == right.size
    expected = part.load(0).resize(left.size, Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(left), np.asarray(expected))
    assert np.abs(np.asarray(right).astype(int) - np.asarray(left).astype(int)).mean() > 5
