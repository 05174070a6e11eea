"""Deletion, insertion, drop and increase, computed by hand for a score that is the mean of one quarter of the image."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from tlcli.evaluation.faithfulness import apply_map, area, blur, deletion, drop, increase, insertion
from tlcli.evaluation.perturbation import at_input_size, pixel_counts, ranking

WHITE = np.full((8, 8, 3), 255, np.uint8)
BLACK = np.zeros_like(WHITE)
NO_COLOUR = np.zeros(3, np.uint8)
QUARTER = np.zeros((8, 8), np.float32)
QUARTER[:4, :4] = 1
OPPOSITE = QUARTER[::-1, ::-1]


def score(images: Iterable[np.ndarray]) -> np.ndarray:  # type: ignore[type-arg]
    return np.array([image[:4, :4].mean() / 255 for image in images])


def test_deletion_of_a_white_image() -> None:
    """16 of 64 pixels are in the quarter. With four steps, the first one deletes everything that the score depends on."""
    curve = deletion(WHITE, ranking(QUARTER), score, 4, NO_COLOUR)
    np.testing.assert_allclose(curve, [1, 0, 0, 0, 0])
    assert area(curve) == pytest.approx(1 / 8)
    curve = deletion(WHITE, ranking(QUARTER), score, 8, NO_COLOUR)
    np.testing.assert_allclose(curve, [1, 0.5, 0, 0, 0, 0, 0, 0, 0])
    assert area(curve) == pytest.approx((0.75 + 0.25) / 8)
    curve = deletion(WHITE, ranking(-QUARTER), score, 4, NO_COLOUR)
    np.testing.assert_allclose(curve, [1, 1, 1, 1, 0])
    assert area(curve) == pytest.approx(7 / 8)


def test_deletion_paints_the_colour_it_is_given() -> None:
    grey = np.array([51, 51, 51], np.uint8)
    np.testing.assert_allclose(deletion(WHITE, ranking(QUARTER), score, 2, grey), [1, 0.2, 0.2])


def test_insertion_is_the_way_back() -> None:
    np.testing.assert_allclose(insertion(WHITE, ranking(QUARTER), score, 4, BLACK), [0, 1, 1, 1, 1])
    np.testing.assert_allclose(insertion(WHITE, ranking(-QUARTER), score, 4, BLACK), [0, 0, 0, 0, 1])
    assert area(insertion(WHITE, ranking(QUARTER), score, 4, BLACK)) == pytest.approx(7 / 8)


def test_equal_values_go_as_they_are_read() -> None:
    """The opposite quarter comes first, then the zeros from the top: the first two rows hold half of the quarter that counts."""
    order = ranking(OPPOSITE)
    assert order[:4].tolist() == [36, 37, 38, 39]
    assert order[16:24].tolist() == list(range(8))
    np.testing.assert_allclose(deletion(WHITE, order, score, 4, NO_COLOUR), [1, 1, 0.5, 0, 0])
    assert ranking(np.zeros((8, 8), np.float32)).tolist() == list(range(64))


def test_steps_are_equal_shares_whatever_the_number_of_pixels() -> None:
    assert pixel_counts(10, 4) == [0, 2, 5, 8, 10]
    assert pixel_counts(64, 1) == [0, 64]
    assert pixel_counts(4, 8) == [0, 0, 1, 2, 2, 2, 3, 4, 4]


def test_drop_and_increase() -> None:
    """The map of the quarter keeps all of the score, the opposite none, and half a map 128 grey levels of 255."""
    (whole,) = score([WHITE])
    after = score([apply_map(WHITE, values, NO_COLOUR) for values in (QUARTER, OPPOSITE, QUARTER / 2)])
    np.testing.assert_allclose([drop(whole, one) for one in after], [0, 1, 127 / 255])
    assert drop(0.5, 0.6) == 0
    assert drop(0.5, 0.4) == pytest.approx(0.2)
    assert drop(0.0, 0.0) == 0
    assert [increase(0.5, value) for value in (0.4, 0.5, 0.6)] == [0, 0, 1]


def test_where_the_map_is_zero_the_mean_colour_is_left() -> None:
    """The mean colour is 0 in the normalised input."""
    colour = np.array([124, 116, 104], np.uint8)
    shown = apply_map(WHITE, QUARTER, colour)
    assert (shown[:4, :4] == 255).all()
    assert (shown[QUARTER == 0] == colour).all()


def test_the_blur_has_the_stated_width() -> None:
    """At an edge of black and white, 16 to 84 % are two standard deviations apart, here of 5 % of 240 pixels."""
    halves = np.zeros((240, 240, 3), np.uint8)
    halves[:, 120:] = 255
    edge = blur(halves)[120, :, 0] / 255
    assert np.interp(0.8413, edge, np.arange(240)) - np.interp(0.1587, edge, np.arange(240)) == pytest.approx(24, abs=1.5)


@pytest.mark.parametrize("values", [np.full((3, 5), 0.3, np.float32), np.array([[1, np.nan], [0, 2]], np.float32)])
def test_a_map_that_says_nothing_stays_constant(values: np.ndarray) -> None:  # type: ignore[type-arg]
    enlarged = at_input_size(values, 31, 17)
    assert enlarged.shape == (17, 31)
    assert enlarged.min() == enlarged.max()
