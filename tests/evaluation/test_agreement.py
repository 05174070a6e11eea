"""Comparison of two files: rank correlation equals SciPy's, and files with known outputs and maps give known figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.helpers.evaluation import corner_model
from tlcli.contract.images.evenly_spaced import evenly_spaced
from tlcli.contract.model.onnx_model import Model
from tlcli.evaluation.agreement import COSTLY_IMAGES, MAP_IMAGES, Images, Shown, compare, rank_correlation


def shown(brightness: int, label: int | None = None, region: tuple[slice, slice] | None = None) -> Shown:
    """Return an image of one grey, which the toy model classifies as bright from 128."""
    where = None
    if region is not None:
        where = np.zeros((corner_model.SIZE, corner_model.SIZE), dtype=bool)
        where[region] = True
    return Shown(np.full((corner_model.SIZE, corner_model.SIZE, 3), brightness, np.uint8), label, where)


def make_images(*of: Shown) -> Images:
    return Images(len(of), "greys", lambda number: of[number])


@pytest.mark.parametrize("seed", range(4))
def test_rank_correlation_is_spearmans(seed: int) -> None:
    draw = np.random.default_rng(seed)
    first = np.maximum(draw.normal(size=(7, 5)), 0).astype(np.float32)  # rectified: many values are equal
    second = (first + draw.normal(size=first.shape)).round(1).astype(np.float32)
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first.ravel(), second.ravel()).statistic)
    assert rank_correlation(first, 3 * first + 1) == pytest.approx(1)
    assert rank_correlation(first, -first) == pytest.approx(-1)


def test_a_map_without_ranks_counts_as_lost_unless_both_have_none() -> None:
    flat, map_ = np.full((3, 3), 2, np.float32), np.arange(9, dtype=np.float32).reshape(3, 3)
    assert rank_correlation(map_, flat) == rank_correlation(flat, map_) == 0
    assert rank_correlation(flat, 0 * flat) is None
    assert rank_correlation(map_, np.full((3, 3), np.nan, np.float32)) == 0


def test_a_file_agrees_with_itself(model: Path) -> None:
    opened = Model.open(model / "1" / "model.onnx", "cpu")
    quarter = (slice(0, corner_model.SIZE // 2), slice(0, corner_model.SIZE // 2))
    found = compare(opened, opened, make_images(shown(20, 0), shown(230, 1, quarter), shown(240, 0, quarter)))
    assert (found.images, found.source, found.agreement, found.finite) == (3, "greys", 1, 1)
    assert found.top1 == found.top1_before == pytest.approx(2 / 3)
    assert (found.maps["gradcam"].rank_correlation, found.maps["gradcam"].rank_correlation_median) == (1, 1)
    assert (found.maps["gradcam"].pointing_before, found.maps["gradcam"].pointing) == (1, 1)
    assert (found.maps["layercam"].pointing_before, found.maps["layercam"].pointing) == (0, 0)
    assert found.maps["ablationcam"].images == 0, "constant in both"
    assert found.maps["ablationcam"].rank_correlation is None


def test_maps_that_moved_are_told_and_labels_that_are_not_known_are_not_counted(model: Path, tmp_path: Path) -> None:
    before = Model.open(model / "1" / "model.onnx", "cpu")
    moved = {"gradcam": corner_model.QUARTER[::-1, ::-1], "layercam": corner_model.QUARTER, "ablationcam": corner_model.QUARTER}
    after = Model.open(corner_model.save(tmp_path / "model.onnx", maps=moved), "cpu")
    quarter = (slice(0, corner_model.SIZE // 2), slice(0, corner_model.SIZE // 2))
    found = compare(before, after, make_images(shown(20), shown(230, None, quarter)))
    assert found.top1 is None
    assert found.top1_before is None
    gradcam = found.maps["gradcam"]
    assert gradcam.rank_correlation == pytest.approx(
        spearmanr(corner_model.QUARTER.ravel(), corner_model.QUARTER[::-1, ::-1].ravel()).statistic
    )
    assert (gradcam.pointing_before, gradcam.pointing) == (1, 0)
    assert found.maps["ablationcam"].rank_correlation == 0, "constant in one of them"


def test_maps_are_compared_on_some_of_many_images(model: Path) -> None:
    opened = Model.open(model / "1" / "model.onnx", "cpu")
    read: list[int] = []

    def show(number: int) -> Shown:
        read.append(number)
        return shown(number % 256)

    found = compare(opened, opened, Images(MAP_IMAGES + 57, "greys", show))
    assert read == list(range(MAP_IMAGES + 57)), "each once, in order"
    assert found.maps["gradcam"].images == MAP_IMAGES
    assert COSTLY_IMAGES < MAP_IMAGES
    assert evenly_spaced(10, 4) == [0, 2, 5, 7]
    assert evenly_spaced(3, 4) == [0, 1, 2]
