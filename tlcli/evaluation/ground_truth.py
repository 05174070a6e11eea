"""Ground-truth object positions from the boxes and masks of a data set, transformed to the network's input."""

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
"""Rounding tolerance in pixels. A box that ends exactly on a pixel's edge does not touch the next pixel."""


@dataclass(frozen=True)
class Truth:
    """Boxes and masks in a data set's folder.

    root: folder of the data set. Its `boxes.json` maps an image's path relative to the folder to `[left, top, right, bottom]` or to a list
        of such boxes. The mask `masks/<relative path>.png`, with the image's suffix replaced, is nonzero on the object. A mask takes
        precedence over a box. Both use pixel coordinates of the upright image, after its EXIF orientation has been applied.
    boxes: boxes by image path.
    """

    root: Path
    boxes: dict[str, tuple[Box, ...]]

    @classmethod
    def find(cls, root: Path) -> Truth | None:
        """Read the boxes of a folder and look for masks. Return None if the folder has neither.

        Raises:
            DatasetError: `boxes.json` cannot be read or has an invalid format.
        """
        path = root / BOXES_FILE
        if path.is_file():
            return cls(root, _read_boxes(path))
        return cls(root, {}) if (root / MASKS_FOLDER).is_dir() else None

    def region(self, name: str, size: tuple[int, int], preprocessing: Preprocessing) -> Flags | None:
        """Return the object's position in the network's input as a mask `[height, width]`.

        Args:
            name: path of the image relative to the root.
            size: width and height of the image.
            preprocessing: preprocessing of the model.

        Returns:
            The mask, all False if the object is cropped away; None if the image has neither a box nor a mask.

        Raises:
            ImageError: the mask file cannot be read, or its size differs from the image's.
        """
        mask = self.root / MASKS_FOLDER / PurePosixPath(name).with_suffix(".png")
        if mask.is_file():
            return mask_region(_read_mask(mask, size), preprocessing)
        boxes = self.boxes.get(name)
        return None if boxes is None else boxes_region(boxes, size, preprocessing)


def boxes_region(boxes: tuple[Box, ...], size: tuple[int, int], preprocessing: Preprocessing) -> Flags:
    """Return a mask `[height, width]` of the input pixels that the boxes of an image touch.

    Args:
        boxes: boxes in pixels of the image.
        size: width and height of the image.
        preprocessing: preprocessing of the model.
    """
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


def _source_pixels(low: float, high: float, length: int) -> Indices:
    """Return the index of the image pixel at the centre of each input pixel.

    A centre on the edge between two pixels belongs to the second.
    """
    return np.floor(low + (np.arange(length) + 0.5) * (high - low) / length + _SLACK).astype(np.int64)


def mask_region(mask: Flags, preprocessing: Preprocessing) -> Flags:
    """Transform an image's mask `[h, w]` to the network's input `[height, width]` by sampling it at the centre of each input pixel."""
    height, width = mask.shape
    left, top, right, bottom = preprocessing.visible_box(width, height)
    columns = _source_pixels(left, right, preprocessing.width)
    rows = _source_pixels(top, bottom, preprocessing.height)
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    return np.asarray(mask[rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)] & inside)


def _read_boxes(path: Path) -> dict[str, tuple[Box, ...]]:
    expected = 'expected {"<path of an image>": [left, top, right, bottom], or a list of such, ...}'
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be read: {first_line(error)}: {expected}") from error
    if not isinstance(document, dict):
        raise DatasetError(f"{path}: holds {type(document).__name__}: {expected}")
    boxes: dict[str, tuple[Box, ...]] = {}
    for name, value in document.items():
        image_boxes = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
        for box in image_boxes:
            if not _is_box(box):
                raise DatasetError(f"{path}: {name}: {json.dumps(box)} is not a box: {expected}, left < right and top < bottom")
        boxes[name] = tuple((float(box[0]), float(box[1]), float(box[2]), float(box[3])) for box in image_boxes)
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
                raise ImageError(
                    f"{path}: the mask has {opened.size[0]}x{opened.size[1]} pixels: expected {size[0]}x{size[1]}, the size of its image"
                )
            values = np.asarray(opened)
            bands = opened.getbands()
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: the mask cannot be read: {first_line(error)}: replace the file") from error
    if values.ndim == 2:
        return np.asarray(values != 0)
    return np.asarray((values[..., [band != "A" for band in bands]] != 0).any(-1))
