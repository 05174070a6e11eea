"""Boxes and masks are transformed exactly as the preprocessing transforms a painted image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlcli.contract.errors import DatasetError, ImageError
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.evaluation.ground_truth import Truth, boxes_region, mask_region

CENTRED = Preprocessing(height=32, width=32, crop_pct=1.0)


def test_a_box_through_the_crop() -> None:
    """An image of 100 x 50 pixels is resized to 64 x 32, of which the middle 32 columns are visible: 25 to 75 of the image."""
    seen = boxes_region(((25, 0, 50, 50),), (100, 50), CENTRED)
    assert seen[:, :16].all()
    assert not seen[:, 16:].any()
    seen = boxes_region(((40, 10, 60, 20),), (100, 50), CENTRED)  # columns 9.6 to 22.4, rows 6.4 to 12.8
    assert seen[6:13, 9:23].all()
    assert seen.sum() == 7 * 14


def test_a_box_outside_of_the_crop_is_nowhere() -> None:
    assert not boxes_region(((0, 0, 25, 50),), (100, 50), CENTRED).any()
    assert not boxes_region(((75, 0, 100, 50),), (100, 50), CENTRED).any()
    touching = boxes_region(((0, 0, 26, 50),), (100, 50), CENTRED)
    assert touching[:, 0].all()
    assert not touching[:, 1:].any()


def test_several_boxes_are_one_region() -> None:
    both = boxes_region(((30, 0, 40, 10), (60, 40, 70, 50)), (100, 50), CENTRED)
    one, other = (boxes_region((box,), (100, 50), CENTRED) for box in ((30, 0, 40, 10), (60, 40, 70, 50)))
    np.testing.assert_array_equal(both, one | other)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(100, 50), (37, 90), (66, 66), (500, 333)])  # sizes at which no image pixel maps to two input pixels
def test_regions_lie_where_the_preprocessing_puts_what_is_painted(mode: str, size: tuple[int, int]) -> None:
    preprocessing = Preprocessing.model_validate(
        {"height": 40, "width": 48, "crop_pct": 0.8, "crop_mode": mode, "interpolation": "nearest", "mean": (0.0, 0.0, 0.0)}
    )
    width, height = size
    rng = np.random.default_rng([width, height])
    for _ in range(20):
        left, top = int(rng.integers(width - 1)), int(rng.integers(height - 1))
        box = (left, top, int(rng.integers(left, width)) + 1, int(rng.integers(top, height)) + 1)
        mask = np.zeros((height, width), bool)
        mask[box[1] : box[3], box[0] : box[2]] = True
        painted = preprocessing.apply(Image.fromarray(np.repeat(mask[..., None] * np.uint8(255), 3, -1)))[..., 0] > 0
        np.testing.assert_array_equal(mask_region(mask, preprocessing), painted)
        region = boxes_region((box,), size, preprocessing)
        assert not (painted & ~region).any()
        grown = np.pad(painted, 1)
        for axis in (0, 1):
            grown = grown | np.roll(grown, 1, axis) | np.roll(grown, -1, axis)
        if painted.any():
            assert not (region & ~grown[1:-1, 1:-1]).any(), "no more than the pixels that the box touches"


def folder(root: Path, boxes: object) -> Path:
    (root / "boxes.json").write_text(json.dumps(boxes))
    return root


def test_boxes_are_read_singly_and_in_lists(tmp_path: Path) -> None:
    truth = Truth.find(folder(tmp_path, {"a/1.png": [1, 2, 3, 4], "a/2.png": [[1, 2, 3, 4], [5, 6.5, 7, 8]]}))
    assert truth is not None
    assert truth.boxes == {"a/1.png": ((1, 2, 3, 4),), "a/2.png": ((1, 2, 3, 4), (5, 6.5, 7, 8))}


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([1], "expected"),
        ({"a.png": [1, 2, 3]}, "a.png: [1, 2, 3] is not a box"),
        ({"a.png": [3, 2, 1, 4]}, "left < right and top < bottom"),
        ({"a.png": [[1, 2, 3, 4], "x"]}, '"x" is not a box'),
        ({"a.png": [1, 2, 3, True]}, "is not a box"),
        ({"a.png": []}, "a.png: [] is not a box"),
    ],
)
def test_what_is_no_box_is_told(boxes: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as told:
        Truth.find(folder(tmp_path, boxes))
    assert said in str(told.value)
    assert str(tmp_path / "boxes.json") in str(told.value)
    assert "\n" not in str(told.value)


def test_masks(tmp_path: Path) -> None:
    """Masks may be grey, 16-bit, palette or coloured. Any nonzero value is the object; transparency is ignored."""
    mask = np.zeros((50, 100), np.uint8)
    mask[:, 25:50] = 1
    images = {
        "grey": Image.fromarray(mask),
        "deep": Image.fromarray(mask.astype(np.uint16)),
        "bits": Image.fromarray(mask * np.uint8(255)).convert("1"),
        "colour": Image.fromarray(np.stack([0 * mask, mask, 0 * mask, np.full_like(mask, 255)], -1)),
    }
    palette = Image.fromarray(mask, mode="P")
    palette.putpalette([0, 0, 0, 0, 0, 0])
    images["palette"] = palette
    (tmp_path / "masks" / "a").mkdir(parents=True)
    for name, image in images.items():
        image.save(tmp_path / "masks" / "a" / f"{name}.png")
    truth = Truth.find(tmp_path)
    assert truth is not None
    for name in images:
        region = truth.region(f"a/{name}.jpg", (100, 50), CENTRED)
        assert region is not None
        assert region[:, :16].all(), name
        assert not region[:, 16:].any(), name
    assert truth.region("a/other.jpg", (100, 50), CENTRED) is None
    with pytest.raises(ImageError, match="the mask has 100x50 pixels: expected 99x50"):
        truth.region("a/grey.jpg", (99, 50), CENTRED)


def test_no_boxes_and_no_masks_is_no_truth(tmp_path: Path) -> None:
    assert Truth.find(tmp_path) is None
