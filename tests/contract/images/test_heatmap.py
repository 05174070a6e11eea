"""Drawing of maps: values, colours, and the position of an overlay."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tlcli.contract.images.heatmap import colorize, encode, enlarge, heat_map, overlay, to_unit

RED, BLUE = (128, 0, 0), (0, 0, 128)


def test_to_unit_spans_zero_to_one() -> None:
    values = np.array([[-3.0, 1.0], [5.0, 0.0]], dtype=np.float32)
    np.testing.assert_allclose(to_unit(values), [[0, 0.5], [1, 0.375]])
    assert to_unit(values).dtype == np.float32


@pytest.mark.parametrize("constant", [0.0, -7.5, 3e38])
def test_a_constant_map_is_zeros(constant: float) -> None:
    assert (to_unit(np.full((7, 7), constant, dtype=np.float32)) == 0).all()


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_is_zeros(odd: float) -> None:
    assert (to_unit(np.array([[0, odd, 1]], dtype=np.float32)) == 0).all()


def test_to_unit_takes_the_whole_range_of_floats() -> None:
    """The difference of the two values overflows float32."""
    np.testing.assert_allclose(to_unit(np.array([[-3e38, 0, 3e38]], dtype=np.float32)), [[0, 0.5, 1]])


def test_enlarge_is_bilinear_between_pixel_centres() -> None:
    """Compare with the definition: centres at (i + 0.5) / n, clamped at the edge."""
    values = np.random.default_rng(0).random((5, 7), dtype=np.float32)
    height, width = 23, 40

    def positions(count: int, cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        place = np.clip((np.arange(count) + 0.5) * cells / count - 0.5, 0, cells - 1)
        low = np.minimum(place.astype(int), cells - 2)
        return low, low + 1, place - low

    top, bottom, down = positions(height, 5)
    left, right, across = positions(width, 7)
    rows = values[top] * (1 - down)[:, None] + values[bottom] * down[:, None]
    expected = rows[:, left] * (1 - across) + rows[:, right] * across
    np.testing.assert_allclose(enlarge(values, width, height), expected, atol=1e-5)


def test_colormap_ends_and_middle() -> None:
    seen = colorize(np.array([[0.0, 0.25, 0.5, 0.75, 1.0]], dtype=np.float32))[0]
    assert seen[0].tolist() == list(BLUE)
    assert seen[4].tolist() == list(RED)
    assert seen[2].tolist() == [128, 255, 128]
    assert seen[1].tolist() == [0, 128, 255]
    assert seen[3].tolist() == [255, 128, 0]
    np.testing.assert_array_equal(colorize(np.array([[-1.0, 2.0]], dtype=np.float32))[0], [BLUE, RED])


def test_heat_map_is_red_where_the_map_is_high() -> None:
    seen = np.asarray(heat_map(np.array([[0, 0], [0, 9]], dtype=np.float32), 80, 60))
    assert seen.shape == (60, 80, 3)
    assert tuple(seen[-1, -1]) == RED
    assert tuple(seen[0, 0]) == BLUE


HALF = np.array([[0, 1]], dtype=np.float32)
WHITE = Image.new("RGB", (200, 100), "white")


def test_overlay_lies_on_the_box_and_dims_the_rest() -> None:
    seen = np.asarray(overlay(WHITE, HALF, (50, 0, 150, 100))).astype(int)
    assert seen.shape == (100, 200, 3)
    np.testing.assert_allclose(seen[:, :50], 128, atol=1)
    np.testing.assert_allclose(seen[:, 150:], 128, atol=1)
    np.testing.assert_allclose(seen[50, 50], (255 + np.array(BLUE)) / 2, atol=1)
    np.testing.assert_allclose(seen[50, 149], (255 + np.array(RED)) / 2, atol=1)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_overlay_strength_is_the_share_of_the_colours(strength: float) -> None:
    seen = np.asarray(overlay(WHITE, HALF, (0, 0, 200, 100), strength))[0, 0]
    np.testing.assert_allclose(seen, (1 - strength) * 255 + strength * np.array(BLUE), atol=1)


def test_overlay_of_a_box_beyond_the_image_shows_the_middle_of_the_map() -> None:
    """With `border` preprocessing the image is the middle half of the input, so the ends of the map are outside."""
    values = np.linspace(0, 1, 9, dtype=np.float32)[:, None].repeat(9, 1)
    seen = overlay(WHITE, values, (0, -50, 200, 150), strength=1.0)
    assert seen.size == (200, 100)
    np.testing.assert_allclose(np.asarray(seen), np.asarray(heat_map(values, 200, 200))[50:150], atol=1)


def test_a_large_image_is_scaled_down_and_its_box_with_it() -> None:
    large = Image.new("RGB", (3000, 1500), "white")
    seen = np.asarray(overlay(large, HALF, (750, 0, 2250, 1500), max_side=200)).astype(int)
    assert seen.shape == (100, 200, 3)
    np.testing.assert_allclose(seen[50, 10], 128, atol=1)
    np.testing.assert_allclose(seen[50, 50], (255 + np.array(BLUE)) / 2, atol=1)
    np.testing.assert_allclose(seen[50, 149], (255 + np.array(RED)) / 2, atol=1)


def test_encode() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    opened = Image.open(io.BytesIO(encode(image)))
    assert opened.format == "PNG"
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(image))
    assert Image.open(io.BytesIO(encode(image, "JPEG"))).format == "JPEG"
