"""Measures of images follow their definitions, and planted flaws are found."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.ndimage import laplace
from scipy.stats import median_abs_deviation

from tlcli.evaluation.cleaning.image_quality import Quality, blurred, dark, measure_quality, oddly_sized, outlying, robust_z


def photograph(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1))


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    grey = np.asarray(photograph(0).convert("L"), dtype=np.float64)
    expected = laplace(grey)[1:-1, 1:-1].var() / grey.var()
    assert measure_quality(photograph(0)).sharpness == pytest.approx(expected, rel=1e-4)


def test_brightness_is_a_percentile_of_the_luminance() -> None:
    image = photograph(1)
    expected = np.percentile(np.asarray(image.convert("L")), 99) / 255
    assert measure_quality(image).brightness == pytest.approx(expected, abs=1 / 255)
    assert measure_quality(image)[2:] == (120, 90)


def test_the_z_score_is_scipys_median_absolute_deviation() -> None:
    values = np.random.default_rng(0).normal(size=101)
    spread = median_abs_deviation(values, scale="normal")
    assert robust_z(values, 0) == pytest.approx((values - np.median(values)) / spread, rel=1e-4)
    assert robust_z(np.ones(5)).tolist() == [0] * 5


def test_planted_flaws_are_found() -> None:
    images = [photograph(seed) for seed in range(30)]
    images[3] = images[3].filter(ImageFilter.GaussianBlur(4))
    images[5] = images[5].point(lambda value: value // 8)
    images[7] = photograph(7, (900, 60))
    images[9] = photograph(9, (16, 12))
    measures = [measure_quality(image) for image in images]
    assert np.flatnonzero(dark(measures)).tolist() == [5]
    assert 3 in np.flatnonzero(blurred(measures))
    assert np.flatnonzero(oddly_sized(measures)).tolist() == [7, 9]


def test_images_of_one_size_and_one_colour_have_no_odd_one() -> None:
    measures = [measure_quality(Image.new("RGB", (8, 8), "white"))] * 4
    assert measures[0] == Quality(1.0, 1.0, 8, 8)
    for flaw in (dark, blurred, oddly_sized):
        assert not flaw(measures).any()


def test_an_outlier_is_far_from_its_neighbours() -> None:
    distances = np.random.default_rng(0).normal(0.5, 0.05, 100)
    distances[17] = 0.9
    assert np.flatnonzero(outlying(distances)).tolist()[0] == 17 or outlying(distances)[17]
    assert outlying(distances).sum() <= 3
