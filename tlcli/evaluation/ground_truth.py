"""Where the objects are: boxes and masks that lie with a data set, seen as the network sees the image."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from tlcli.contract.errors import DatasetError, ImageError, first_line
from tlcli.contract.images.preprocessing import Box, Preprocessing
from tlcli.evaluation.perturbation import Flags, Indices
from tlcli.training.data.shapes import BOXES_FILE

MASKS_FOLDER = "masks"

_SLACK = 1e-6
"""Pixels: places that are equal but for rounding are equal. An edge on a pixel's edge does not touch the pixel beyond it."""


@dataclass(frozen=True)
class Truth:
    """The boxes and masks of a data set's folder.

    root: the folder. Its `boxes.json` says of images, by their path below it, `[left, top, right, bottom]` or a list of such;
        `masks/<path below it>.png` (the image's suffix replaced) is not zero where the object is. A mask goes before a box.
        Both are in pixels of the image as people see it, turned by its EXIF orientation.
    boxes: by image.
    """

    root: Path
    boxes: dict[str, tuple[Box, ...]]

    @classmethod
    def find(cls, root: Path) -> Truth | None:
        """What lies in a folder; None if it has neither boxes nor masks.

        Raises:
            DatasetError: a `boxes.json` that is not as above.
        """
        path = root / BOXES_FILE
        if path.is_file():
            return cls(root, _read_boxes(path))
        return cls(root, {}) if (root / MASKS_FOLDER).is_dir() else None

    def region(self, name: str, size: tuple[int, int], preprocessing: Preprocessing) -> Flags | None:
        """Where the object of image `name` is in the network's input, `[height, width]`.

        Nowhere, if the crop leaves all of it out. None if nothing is known of this image.

        Args:
            name: below the root.
            size: the image's width and height.
            preprocessing: the model's.

        Raises:
            ImageError: a mask that cannot be read, or of another size than its image.
        """
        mask = self.root / MASKS_FOLDER / PurePosixPath(name).with_suffix(".png")
        if mask.is_file():
            return seen_mask(_read_mask(mask, size), preprocessing)
        boxes = self.boxes.get(name)
        return None if boxes is None else seen_boxes(boxes, size, preprocessing)


def seen_boxes(boxes: tuple[Box, ...], size: tuple[int, int], preprocessing: Preprocessing) -> Flags:
    """Boxes of an image of `size` (width, height) in its network's input: every pixel that one of them touches, `[height, width]`."""
    left, top, right, bottom = preprocessing.visible_box(*size)
    across, down = preprocessing.width / (right - left), preprocessing.height / (bottom - top)
    region = np.zeros((preprocessing.height, preprocessing.width), dtype=np.bool_)
    for box in boxes:
        columns = _touched((box[0] - left) * across, (box[2] - left) * across, preprocessing.width)
        rows = _touched((box[1] - top) * down, (box[3] - top) * down, preprocessing.height)
        region[rows, columns] = True
    return region


def _touched(low: float, high: float, length: int) -> slice:
    return slice(min(max(math.floor(low + _SLACK), 0), length), min(max(math.ceil(high - _SLACK), 0), length))


def _under(low: float, high: float, length: int) -> Indices:
    """The image's pixel under the middle of each of the input's; a middle on the edge of two belongs to the second."""
    return np.floor(low + (np.arange(length) + 0.5) * (high - low) / length + _SLACK).astype(np.int64)


def seen_mask(mask: Flags, preprocessing: Preprocessing) -> Flags:
    """An image's mask, `[h, w]`, in its network's input, `[height, width]`: what lies under the middle of each pixel."""
    height, width = mask.shape
    left, top, right, bottom = preprocessing.visible_box(width, height)
    columns = _under(left, right, preprocessing.width)
    rows = _under(top, bottom, preprocessing.height)
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    return np.asarray(mask[rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)] & inside)


def _read_boxes(path: Path) -> dict[str, tuple[Box, ...]]:
    expected = 'expected {"<path of an image>": [left, top, right, bottom], or a list of such, ...}'
    try:
        kept = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be read: {first_line(error)}: {expected}") from error
    if not isinstance(kept, dict):
        raise DatasetError(f"{path}: {expected}, {type(kept).__name__} came")
    boxes: dict[str, tuple[Box, ...]] = {}
    for name, value in kept.items():
        several = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
        for box in several:
            if not _is_box(box):
                raise DatasetError(f"{path}: {name}: {json.dumps(box)} is no box: {expected}, left < right and top < bottom")
        boxes[name] = tuple((float(box[0]), float(box[1]), float(box[2]), float(box[3])) for box in several)
    return boxes


def _is_box(value: Any) -> bool:
    if not (isinstance(value, list) and len(value) == 4 and all(type(edge) in (int, float) and math.isfinite(edge) for edge in value)):
        return False
    left, top, right, bottom = value
    return bool(left < right and top < bottom)


def _read_mask(path: Path, size: tuple[int, int]) -> Flags:
    try:
        with Image.open(path, formats=("PNG",)) as opened:
            if opened.size != size:
                raise ImageError(f"{path}: a mask of {opened.size[0]}x{opened.size[1]} pixels, its image has {size[0]}x{size[1]}")
            values = np.asarray(opened)
            bands = opened.getbands()
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: a mask that cannot be read: {first_line(error)}") from error
    if values.ndim == 2:
        return np.asarray(values != 0)
    return np.asarray((values[..., [band != "A" for band in bands]] != 0).any(-1))
