"""Contact sheets show the computed values: the colour of each pixel, the channels, and their positions."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tlcli.training.models.feature_layout import FeatureLayout
from tlcli.training.models.spatial_layers import Layer
from tlcli.training.visualize.colormap import FLAT, RAMP, about_zero, color_map
from tlcli.training.visualize.contact_sheet import WIDEST, Box, Tile, columns_for, lay_out
from tlcli.training.visualize.layer_sheets import LayerSheet, filters_sheet, maps_sheet, mean_map, overview_sheet
from tlcli.training.visualize.write_sheets import file_name

LAYER = Layer(
    7, "stage.conv", "stage.conv", "Conv2d", 4, FeatureLayout("channels_first", 7, 7), pools=False, convolves=True, is_features=False
)


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Iterator[None]:
    """Above all, of divisions by zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def maps(channels: int, height: int, width: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(channels).normal(size=(channels, height, width)).astype(np.float32)


def cut(image: Image.Image, box: Box) -> npt.NDArray[np.uint8]:
    return np.asarray(image.crop(box))


def whole(zoom: int, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Enlarge each pixel to a square."""
    return np.kron(pixels, np.ones((zoom, zoom, 1), np.uint8))


@pytest.mark.parametrize(("height", "width", "zoom"), [(7, 7, 32), (56, 56, 4), (10, 20, 11), (150, 150, 1)])
def test_a_tile_shows_the_values_in_the_colours_of_the_ramp(height: int, width: int, zoom: int, tmp_path: Path) -> None:
    values = maps(5, height, width)
    drawn = maps_sheet(LAYER, values, most=64)
    drawn.sheet.save(tmp_path / "sheet.png")
    assert drawn.shown == (0, 1, 2, 3, 4)
    with Image.open(tmp_path / "sheet.png") as opened:
        for channel, box in enumerate(drawn.sheet.boxes):
            own = values[channel].astype(float)
            share = ((own - own.min()) / (own.max() - own.min())).astype(np.float32)
            expected = np.array([[RAMP[round(255 * one)] for one in row] for row in share])
            np.testing.assert_array_equal(cut(opened.convert("RGB"), box), whole(zoom, expected))


def test_equal_steps_look_equal() -> None:
    """OKLab computed back from the bytes (Ottosson 2020): the lightness rises evenly from dark to light."""
    encoded = RAMP / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    to_cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    cones = np.cbrt(linear @ np.transpose(to_cones))
    lightness = cones @ np.array([0.2104542553, 0.7936177850, -0.0040720468])
    assert np.abs(lightness - np.linspace(lightness[0], lightness[-1], 256)).max() < 0.005
    assert lightness[0] < 0.25
    assert lightness[-1] > 0.9


@pytest.mark.parametrize("value", [0.0, 3.5, -1e30, np.nan, np.inf])
def test_a_constant_channel_is_flat_and_counted(value: float) -> None:
    values = maps(6, 5, 5)
    values[2] = value
    drawn = maps_sheet(LAYER, values, most=64)
    assert drawn.flat == 1
    assert (cut(drawn.sheet.image, drawn.sheet.boxes[2]) == FLAT).all()
    assert len(np.unique(cut(drawn.sheet.image, drawn.sheet.boxes[3]).reshape(-1, 3), axis=0)) > 5


def test_a_pixel_that_is_not_finite_makes_a_channel_flat() -> None:
    values = maps(1, 4, 4)[0]
    values[1, 1] = np.nan
    assert (color_map(values) == FLAT).all()


def test_a_map_constant_up_to_rounding_is_flat() -> None:
    """The mean over the channels after a layer norm, for example, is noise around zero."""
    values = maps(32, 6, 6)
    normed = (values - values.mean(0)) / values.std(0)
    assert np.ptp(normed.mean(0)) > 0
    assert (mean_map(normed) == 0).all()
    assert (color_map(np.float32(3) + np.float32(5e-7) * maps(1, 6, 6)[0]) == FLAT).all()
    np.testing.assert_allclose(mean_map(values), values.astype(float).mean(0), rtol=1e-6)
    assert len(np.unique(color_map(1e-20 * values[0]).reshape(-1, 3), axis=0)) > 20, "small is not flat"


def test_the_most_active_of_many_channels_are_shown() -> None:
    values = maps(50, 3, 3)
    values += np.array([5.0 if channel in (3, 11, 40) else 0.0 for channel in range(50)], np.float32)[:, None, None]
    values[7] = np.nan
    drawn = maps_sheet(LAYER, values, most=3)
    assert drawn.shown == (3, 11, 40)
    assert drawn.flat == 1
    for channel, box in zip(drawn.shown, drawn.sheet.boxes, strict=True):
        np.testing.assert_array_equal(cut(drawn.sheet.image, box), whole(74, color_map(values[channel])))


def test_each_tile_has_its_number() -> None:
    """With the same map on every tile, sheets of other channels differ only below the tiles."""
    one = maps(1, 6, 6).repeat(30, 0)

    def active(*channels: int) -> LayerSheet:
        shift = np.array([float(channel in channels) for channel in range(30)], np.float32)
        return maps_sheet(LAYER, one + shift[:, None, None], most=2)

    first, second = active(1, 2), active(1, 20)
    assert (first.shown, second.shown) == ((1, 2), (1, 20))
    changed = np.argwhere((np.asarray(first.sheet.image) != np.asarray(second.sheet.image)).any(2))
    left, _, right, bottom = first.sheet.boxes[1]
    assert len(changed) > 10
    assert (changed[:, 0] >= bottom).all()
    assert ((changed[:, 1] >= left) & (changed[:, 1] < right)).all()


def test_kernels_with_three_inputs_are_rgb() -> None:
    weight = np.zeros((3, 3, 2, 2), np.float32)
    weight[0, 0, 0, 0] = 2.0  # red
    weight[0, 2, 1, 1] = -1.0  # less blue
    weight[1, :, 0, 1] = 0.5  # white
    weight[1, :, 1, 0] = -0.5  # black
    drawn = filters_sheet(LAYER, weight, most=64)
    grey = [128, 128, 128]
    np.testing.assert_array_equal(
        cut(drawn.sheet.image, drawn.sheet.boxes[0])[::56, ::56], [[[255, 128, 128], grey], [grey, [128, 128, 64]]]
    )
    np.testing.assert_array_equal(cut(drawn.sheet.image, drawn.sheet.boxes[1])[::56, ::56], [[grey, [255] * 3], [[1] * 3, grey]])
    assert (cut(drawn.sheet.image, drawn.sheet.boxes[2]) == 128).all()
    assert drawn.flat == 1


def test_kernels_with_other_inputs_are_grey_and_side_by_side() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 20, 3, 3)).astype(np.float32)
    drawn = filters_sheet(LAYER, weight, most=2)
    norms = [float((one**2).sum()) for one in weight]
    assert set(drawn.shown) == set(np.argsort(norms)[-2:])
    for number, box in zip(drawn.shown, drawn.sheet.boxes, strict=True):
        row = cut(drawn.sheet.image, box)
        assert row.shape == (60, 8 * 60 + 7 * 5, 3)
        for channel in range(8):
            kernel = row[:, channel * 65 : channel * 65 + 60]
            expected = np.rint(128 + 127 * weight[number, channel] / np.abs(weight[number, :8]).max()).astype(np.uint8)
            np.testing.assert_array_equal(kernel, whole(20, np.stack([expected] * 3, -1)))


def test_a_kernel_with_one_input_is_one_tile() -> None:
    weight = np.linspace(-1, 1, 25, dtype=np.float32).reshape(1, 1, 5, 5)
    drawn = filters_sheet(LAYER, weight, most=64)
    seen = cut(drawn.sheet.image, drawn.sheet.boxes[0])[::22, ::22, 0]
    np.testing.assert_array_equal(seen, about_zero(weight)[0, 0])
    assert (seen[0, 0], seen[2, 2], seen[4, 4]) == (1, 128, 255)


@pytest.mark.parametrize(
    ("channels", "size", "columns"), [(1, 300, None), (9, 5, 1), (64, 600, None), (700, 3, None), (70, 9, 64), (64, 64, 64)]
)
def test_no_sheet_is_too_wide_and_no_tiles_overlap(channels: int, size: int, columns: int | None) -> None:
    drawn = maps_sheet(replace(LAYER, label="a" * 300), maps(channels, size, size), most=4096, columns=columns)
    assert drawn.sheet.image.width <= WIDEST
    taken = np.zeros(drawn.sheet.image.size[::-1], bool)
    for left, top, right, bottom in drawn.sheet.boxes:
        assert right <= drawn.sheet.image.width
        assert bottom <= drawn.sheet.image.height
        assert right - left >= min(size, 22)
        assert not taken[top:bottom, left:right].any()
        taken[top:bottom, left:right] = True
    if columns is not None:
        assert len({box[0] for box in drawn.sheet.boxes}) == min(columns, channels)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (3, 3), (8, 8), (9, 5), (16, 8), (24, 8), (64, 8), (256, 16), (0, 0)])
def test_columns_suit_the_number_of_tiles(count: int, columns: int) -> None:
    assert columns_for(count) == columns


def test_the_overview_has_the_image_and_the_means() -> None:
    image = np.random.default_rng(1).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    means = [(LAYER, maps(1, 7, 7)[0]), (LAYER, maps(2, 56, 56)[1])]
    drawn = overview_sheet("an image", "a network", image, means)
    np.testing.assert_array_equal(cut(drawn.image, drawn.boxes[0]), image)
    np.testing.assert_array_equal(cut(drawn.image, drawn.boxes[1]), whole(32, color_map(means[0][1])))
    np.testing.assert_array_equal(cut(drawn.image, drawn.boxes[2]), whole(4, color_map(means[1][1])))


def test_letters_that_the_font_lacks_are_replaced() -> None:
    tile = Tile(np.zeros((40, 40, 3), np.uint8), ("猫\n", "é"))
    assert lay_out("猫の写真\t" * 200, "a\nb", [tile], 1).image.width <= WIDEST


def test_file_names_sort_in_the_order_of_execution_and_are_safe() -> None:
    layers = [replace(LAYER, number=number, label=label) for number, label in ((2, "z"), (10, "stage.conv:2"), (99, "a/b\\c d" * 60))]
    for last, digits in ((9, 2), (99, 2), (100, 3), (1500, 4)):
        names = [file_name(layer, last, "maps") for layer in layers]
        assert names == sorted(names)
        assert all(re.fullmatch(rf"\d{{{digits}}}-[A-Za-z0-9._-]{{1,150}}", name) for name in names)
    assert file_name(layers[1], 150, "filters") == "010-stage.conv-2.filters.png"
