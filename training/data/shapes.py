"""Synthetic data set of shapes for demos and tests that need no download: a folder of images with bounding boxes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from tlcli.contract.errors import DatasetError
from tlcli.training.data.drawing.draw_shape import DEFAULT_SIZE, DRAWING_VERSION, SHAPES, Box, Drawing, draw
from tlcli.training.runtime.progress import ProgressFactory, silent

__all__ = [
    "BOXES_FILE",
    "DEFAULT_COUNTS",
    "DEFAULT_SIZE",
    "SHAPES",
    "Box",
    "Drawing",
    "draw",
    "load_boxes",
    "shapes_folder",
    "write_shapes",
]

BOXES_FILE = "boxes.json"
DEFAULT_COUNTS: Mapping[str, int] = {"train": 400, "val": 60, "test": 100}
"""Number of images per class in each part."""


def write_shapes(
    folder: Path,
    counts: Mapping[str, int] = DEFAULT_COUNTS,
    seed: int = 0,
    size: int = DEFAULT_SIZE,
    progress: ProgressFactory = silent,
) -> None:
    """Draw the data set to `<folder>/<part>/<class>/<number>.png`, and write the bounding boxes to `boxes.json`.

    Args:
        folder: output folder, created if missing.
        counts: number of images per class in each part.
        seed: seed of the sequence of drawings. Parts take consecutive drawings, so that no image occurs in two parts.
        size: width and height of each image in pixels.
        progress: progress bar, one step per image.

    Raises:
        OSError: the folder cannot be written to.
    """
    boxes: dict[str, Box] = {}
    index = 0
    with progress("Drawing shapes", len(SHAPES) * sum(counts.values())) as advance:
        for part, count in counts.items():
            for name in SHAPES:
                (folder / part / name).mkdir(parents=True, exist_ok=True)
            for number in range(count * len(SHAPES)):
                drawing = draw(index, seed, size)
                path = f"{part}/{SHAPES[drawing.label]}/{number // len(SHAPES):05d}.png"
                drawing.image.save(folder / path, compress_level=3)
                boxes[path] = drawing.box
                index += 1
                advance(1)
    (folder / BOXES_FILE).write_text(json.dumps(boxes))


def load_boxes(folder: Path) -> dict[str, Box]:
    """Load the bounding boxes of a folder written by `write_shapes`. Keys are image paths relative to the folder.

    Raises:
        DatasetError: `boxes.json` is missing or was not written by `write_shapes`.
    """
    path = folder / BOXES_FILE
    try:
        boxes = json.loads(path.read_text())
        return {name: (int(left), int(top), int(right), int(bottom)) for name, (left, top, right, bottom) in boxes.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path}: not a file of bounding boxes ({error}): create it with --dataset shapes") from error


def shapes_folder(data_dir: Path, seed: int, counts: Mapping[str, int] = DEFAULT_COUNTS, size: int = DEFAULT_SIZE) -> Path:
    """Return the folder of the data set with the given seed, counts and image size."""
    key = hashlib.sha256(json.dumps([DRAWING_VERSION, seed, dict(counts), size]).encode()).hexdigest()[:12]
    return data_dir / f"shapes-{key}"
