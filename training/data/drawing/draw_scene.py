"""Image generator for scenes: several shapes of different classes on a textured background, each with its bounding box.

The classes of an image are correlated, so that a network can guess one from another, and must yet find each at its own place. A few images
have no shape at all.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from tlcli.training.data.drawing.draw_shape import (
    DEFAULT_SIZE,
    OTHER_SHAPES,
    SHAPES,
    Box,
    background,
    box_of,
    contrasting,
    coverage,
    distractor,
    paint,
    random_colour,
    shading,
)

LABELS = tuple(sorted((*SHAPES, *OTHER_SHAPES)))
"""Class names."""

LABELS_FILE, LABEL_BOXES_FILE = "labels.csv", "label_boxes.json"

DRAWING_VERSION = 1
"""Version of the generator. Increment it when a seed produces different images."""

MOST_SHAPES = 4
"""Maximum number of shapes in an image."""
_EMPTY = 0.04
"""Fraction of the images without a shape."""
_COMPANION = 0.6
"""Probability that a shape brings along its companion, the next class in `LABELS`."""
_RADII = (0.13, 0.19)
_GAP = 0.02
"""Minimum distance between the circles around two shapes, relative to the side length of the image."""


@dataclass(frozen=True)
class Scene:
    """Generated image: RGB image, and the bounding box of the shape of each of its classes."""

    image: Image.Image
    boxes: dict[str, Box]


def draw_scene(index: int, seed: int, size: int = DEFAULT_SIZE, most: int = MOST_SHAPES) -> Scene:
    """Draw image number `index` of the infinite sequence defined by `seed`.

    Args:
        index: index of the image, starting at 0.
        seed: non-negative seed of the sequence.
        size: width and height in pixels.
        most: maximum number of shapes; with 1, every image has exactly one.
    """
    rng = np.random.default_rng([DRAWING_VERSION, seed, index])
    canvas = background(rng, size)
    for _ in range(rng.integers(1, 4)):
        paint(canvas, distractor(rng, size), random_colour(rng))
    boxes: dict[str, Box] = {}
    placed: list[tuple[npt.NDArray[np.float64], float]] = []
    for name in _classes(rng) if most > 1 else [LABELS[rng.integers(len(LABELS))]]:
        radius = float(rng.uniform(*_RADII))
        centre = _free_place(rng, radius, placed)
        if centre is None or len(placed) == most:
            continue
        placed.append((centre, radius))
        mask = coverage(rng, name, centre, radius, size)
        paint(canvas, mask, contrasting(rng, canvas.mean((0, 1), where=mask[..., None] > 0.5)), shading(rng, size))
        boxes[name] = box_of(mask)
    canvas += rng.normal(0.0, rng.uniform(0.0, 6.0), canvas.shape).astype(np.float32)
    return Scene(Image.fromarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8)), boxes)


def write_scenes(folder: Path, counts: Mapping[str, int], seed: int = 0, size: int = DEFAULT_SIZE, most: int = MOST_SHAPES) -> Path:
    """Draw a data set to `<folder>/<part>/<number>.png`, with a label file and the box of each label.

    Args:
        folder: output folder, created if missing.
        counts: number of images in each part.
        seed: seed of the sequence of drawings. Parts take consecutive drawings, so that no image occurs in two parts.
        size: width and height of each image in pixels.
        most: maximum number of shapes in an image.

    Returns:
        Path of the label file. `label_boxes.json` next to it maps the path of each image to the boxes of its labels.

    Raises:
        OSError: the folder cannot be written to.
    """
    boxes: dict[str, dict[str, Box]] = {}
    rows: list[tuple[str, str, str]] = []
    index = 0
    for part, count in counts.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            scene = draw_scene(index, seed, size, most)
            path = f"{part}/{number:05d}.png"
            scene.image.save(folder / path, compress_level=3)
            boxes[path] = scene.boxes
            rows.append((path, "|".join(sorted(scene.boxes)), part))
            index += 1
    (folder / LABEL_BOXES_FILE).write_text(json.dumps(boxes))
    with (folder / LABELS_FILE).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "labels", "split"), *rows])
    return folder / LABELS_FILE


def _classes(rng: np.random.Generator) -> list[str]:
    """Return up to four classes in random order, of which many are companions of each other."""
    if rng.random() < _EMPTY:
        return []
    chosen: list[int] = []
    for first in rng.permutation(len(LABELS))[: rng.integers(1, 4)].tolist():
        chosen.append(first)
        if rng.random() < _COMPANION:
            chosen.append((first + 1) % len(LABELS))
    return [LABELS[label] for label in dict.fromkeys(chosen)][:MOST_SHAPES]


def _free_place(
    rng: np.random.Generator, radius: float, placed: list[tuple[npt.NDArray[np.float64], float]]
) -> npt.NDArray[np.float64] | None:
    """Return a random centre whose circle overlaps none of the others; None if none was found in a hundred attempts."""
    for _ in range(100):
        centre = rng.uniform(radius + 0.01, 0.99 - radius, 2)
        if all(math.dist(centre, other) >= radius + other_radius + _GAP for other, other_radius in placed):
            return centre
    return None
