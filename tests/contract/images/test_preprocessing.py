"""`Preprocessing.apply` equals timm's evaluation transform bit for bit; geometry of the visible part of an image."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform

from tlcli.contract.images.preprocessing import IMAGENET_MEAN, Box, CropMode, Interpolation, Preprocessing

SIZES = [(224, 224), (32, 32), (150, 150), (299, 299), (224, 288), (96, 64)]
IMAGES = [(500, 375), (333, 500), (32, 32), (28, 28), (225, 224), (1, 1), (7, 301), (640, 17), (1023, 769)]
CROPS: list[CropMode] = ["center", "squash", "border"]
INTERPOLATIONS: list[Interpolation] = ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8))


def by_timm(image: Image.Image, how: Preprocessing) -> np.ndarray:
    transform = create_transform(
        (3, how.height, how.width),
        is_training=False,
        interpolation=how.interpolation,
        crop_pct=how.crop_pct,
        crop_mode=how.crop_mode,
        mean=how.mean,
        std=how.std,
        normalize=False,
    )
    return transform(image).numpy().transpose(1, 2, 0)


@pytest.mark.parametrize("crop_mode", CROPS)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.9, 0.96])
def test_is_bit_identical_to_timm(crop_mode: CropMode, interpolation: Interpolation, crop_pct: float) -> None:
    for (height, width), photo in itertools.product(SIZES, IMAGES):
        if max(photo) / min(photo) > 30 and height * width > 40_000:
            continue  # slow, and the smaller sizes cover this ratio
        how = Preprocessing(height=height, width=width, crop_pct=crop_pct, crop_mode=crop_mode, interpolation=interpolation)
        image = noise(*photo)
        ours = how.apply(image)
        np.testing.assert_array_equal(ours, by_timm(image, how), err_msg=f"{how} of {photo}")


def test_result_is_writable_contiguous_and_leaves_the_image_alone() -> None:
    image = noise(224, 224)
    values = Preprocessing(height=224, width=224, crop_pct=1.0).apply(image)
    assert values.flags.writeable
    assert values.flags.c_contiguous
    before = image.tobytes()
    values[:] = 0
    assert image.tobytes() == before


def test_a_sliver_costs_no_more_memory_than_it_shows() -> None:
    """An image that is 30,000 times longer than high would be resized to 30,000 x 256 x 256 pixels."""
    how = Preprocessing(height=224, width=224)
    values = how.apply(Image.new("RGB", (30_000, 1), (10, 200, 30)))
    assert values.shape == (224, 224, 3)
    assert (values == (10, 200, 30)).all()


@pytest.mark.parametrize(
    ("crop_mode", "crop_pct", "size", "image", "expected"),
    [
        ("center", 1.0, (224, 224), (448, 224), (112, 0, 336, 224)),
        ("center", 1.0, (224, 224), (224, 448), (0, 112, 224, 336)),
        ("center", 0.5, (100, 100), (200, 200), (50, 50, 150, 150)),
        ("center", 0.875, (224, 224), (512, 512), (32, 32, 480, 480)),
        ("center", 1.0, (100, 200), (400, 400), (0, 100, 400, 300)),
        ("squash", 1.0, (224, 224), (448, 100), (0, 0, 448, 100)),
        ("squash", 0.5, (100, 100), (400, 200), (100, 50, 300, 150)),
        ("border", 1.0, (100, 100), (200, 100), (0, -50, 200, 150)),
        ("border", 1.0, (100, 100), (100, 400), (-148, 0, 252, 400)),  # 75 columns of padding: 37 left, 38 right
    ],
)
def test_visible_box(crop_mode: CropMode, crop_pct: float, size: tuple[int, int], image: tuple[int, int], expected: Box) -> None:
    how = Preprocessing(height=size[0], width=size[1], crop_pct=crop_pct, crop_mode=crop_mode)
    assert how.visible_box(*image) == pytest.approx(expected)


@pytest.mark.parametrize("crop_mode", CROPS)
@pytest.mark.parametrize("photo", [(500, 375), (333, 500), (120, 700)])
def test_visible_box_is_what_apply_shows(crop_mode: CropMode, photo: tuple[int, int]) -> None:
    """The image's colours are its coordinates, so each input pixel must show the position that follows from the box."""
    width, height = photo
    across, down = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    image = Image.fromarray((255 * np.stack([across, down, np.ones_like(across)], -1)).round().astype(np.uint8))
    how = Preprocessing(height=96, width=96, crop_mode=crop_mode, interpolation="bilinear", mean=(0, 0, 0))
    seen = how.apply(image) / 255
    left, top, right, bottom = how.visible_box(width, height)
    middle = (np.arange(96) + 0.5) / 96
    inside = seen[..., 2] > 0.999  # border pads with black
    for axis in (0, 1):  # at the image's edge the filter is one-sided
        inside &= np.roll(inside, 1, axis) & np.roll(inside, -1, axis)
    inside[:, [0, -1]] = inside[[0, -1]] = False
    expected_across = np.broadcast_to((left + (right - left) * middle) / width, (96, 96))
    expected_down = np.broadcast_to(((top + (bottom - top) * middle) / height)[:, None], (96, 96))
    tolerance = 1.5 / 255 + 0.5 / min(width, height)
    assert inside.mean() > 0.05
    np.testing.assert_allclose(seen[..., 0][inside], expected_across[inside], atol=tolerance)
    np.testing.assert_allclose(seen[..., 1][inside], expected_down[inside], atol=tolerance)


def test_border_pads_with_the_mean_colour() -> None:
    seen = Preprocessing(height=50, width=50, crop_pct=1.0, crop_mode="border").apply(Image.new("RGB", (100, 50), "white"))
    expected = [round(255 * value) for value in IMAGENET_MEAN]
    assert seen[0, 25].tolist() == expected
    assert seen[-1, 25].tolist() == expected
    assert seen[25, 25].tolist() == [255, 255, 255]


def test_kept_as_json() -> None:
    how = Preprocessing(height=224, width=192, crop_pct=0.95, crop_mode="border", interpolation="lanczos", mean=(0.5, 0.5, 0.5))
    assert Preprocessing.model_validate_json(how.model_dump_json()) == how
    assert math.isclose(how.std[0], 0.229)
