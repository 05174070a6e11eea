"""Image generator for the synthetic `shapes` data set: a shape on a textured background, with its bounding box.

Classes differ only in their outline: colour, texture, position, size and rotation are sampled from the same ranges for every shape.
Lines, strokes and specks that belong to no class serve as distractors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

SHAPES = ("circle", "cross", "ring", "square", "star", "triangle")
"""Class names, indexed by label."""

OTHER_SHAPES = ("arrow", "bar")
"""Shapes that only scenes of several shapes contain."""

Box = tuple[int, int, int, int]
"""Bounding box as left, top, right and bottom in pixels; right and bottom are exclusive."""

DEFAULT_SIZE = 64

DRAWING_VERSION = 1
"""Version of the generator. Increment it when a seed produces different images, so that stored folders are regenerated."""

_OVERSAMPLING = 4
_MIN_CONTRAST = 120.0
"""Minimum Euclidean distance between the colour of a shape and the mean colour behind it, in RGB from 0 to 255."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Drawing:
    """Generated image with its label and bounding box.

    image: RGB image. label: index into `SHAPES`. box: tight bounding box of all pixels that the shape touches.
    """

    image: Image.Image
    label: int
    box: Box


def draw(index: int, seed: int, size: int = DEFAULT_SIZE) -> Drawing:
    """Draw image number `index` of the infinite sequence defined by `seed`. Its class is `index` modulo the number of shapes.

    Args:
        index: index of the image, starting at 0.
        seed: non-negative seed of the sequence.
        size: width and height in pixels.
    """
    rng = np.random.default_rng([DRAWING_VERSION, seed, index])
    label = index % len(SHAPES)
    canvas = background(rng, size)
    for _ in range(rng.integers(2, 6)):
        paint(canvas, distractor(rng, size), random_colour(rng))
    mask = _shape(rng, SHAPES[label], size)
    covered = mask[..., None] > 0.5
    paint(canvas, mask, contrasting(rng, canvas.mean((0, 1), where=covered)), shading(rng, size))
    canvas += rng.normal(0.0, rng.uniform(0.0, 6.0), canvas.shape).astype(np.float32)
    image = Image.fromarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8))
    return Drawing(image, label, box_of(mask))


def box_of(mask: Floats) -> Box:
    """Return the tight bounding box of all pixels that a shape touches, given its coverage `[size, size]`."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def background(rng: np.random.Generator, size: int) -> Floats:
    """Return a random background as float RGB `[size, size, 3]` in 0..255: two colours blended by a smooth pattern, plus a tint."""
    pattern = (_cloud, _gradient, _stripes)[rng.integers(3)](rng, size)[..., None]
    first, second = _muted(rng), _muted(rng)
    canvas = first + (second - first) * pattern * rng.uniform(0.2, 0.6)
    tint = np.stack([_cloud(rng, size) for _ in range(3)], -1) - 0.5
    return np.asarray(canvas + 30 * tint, dtype=np.float32)


def _cloud(rng: np.random.Generator, size: int) -> Floats:
    """Return smooth noise in about 0..1, interpolated from a coarse random grid."""
    cells = int(rng.integers(2, 9))
    coarse = Image.fromarray(rng.random((cells, cells), dtype=np.float32), mode="F")
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def _gradient(rng: np.random.Generator, size: int) -> Floats:
    along = _along(rng, size)
    return np.asarray((along - along.min()) / (along.max() - along.min()), dtype=np.float32)


def _stripes(rng: np.random.Generator, size: int) -> Floats:
    wave = np.sin(2 * np.pi * (rng.uniform(2.0, 9.0) * _along(rng, size) + rng.random()))
    return np.asarray(0.5 + 0.5 * np.clip(wave * rng.uniform(1.0, 4.0), -1, 1), dtype=np.float32)


def _along(rng: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
    """Return the coordinate of each pixel along a random direction, relative to the side length of the image."""
    angle = rng.uniform(0, 2 * np.pi)
    down, across = np.mgrid[:size, :size] / size
    return np.asarray(across * math.cos(angle) + down * math.sin(angle), dtype=np.float64)


def shading(rng: np.random.Generator, size: int) -> Floats:
    """Return random surface shading, `[size, size, 1]`, with values from about -20 to 20."""
    return (40 * (_cloud(rng, size) - 0.5))[..., None]


def random_colour(rng: np.random.Generator) -> Floats:
    """Return a random colour, float RGB in 20..235."""
    return rng.uniform(20, 235, 3).astype(np.float32)


def _muted(rng: np.random.Generator) -> Floats:
    colour = random_colour(rng)
    return np.asarray(colour + 0.45 * (colour.mean() - colour), dtype=np.float32)


def contrasting(rng: np.random.Generator, behind: Floats) -> Floats:
    """Return a random colour that differs clearly from the colour behind a shape."""
    while True:
        colour = random_colour(rng)
        if np.linalg.norm(colour - behind) >= _MIN_CONTRAST:
            return colour


def paint(canvas: Floats, mask: Floats, colour: Floats, shading: Floats | float = 0.0) -> None:
    """Blend a colour, with optional shading `[size, size, 1]`, into a canvas `[size, size, 3]`, weighted by a mask `[size, size]`."""
    canvas += mask[..., None] * (colour + shading - canvas)


def _shape(rng: np.random.Generator, name: str, size: int) -> Floats:
    """Draw a shape and return its coverage of each pixel, `[size, size]` in 0..1."""
    radius = rng.uniform(0.25, 0.40)
    return coverage(rng, name, rng.uniform(radius + 0.02, 0.98 - radius, 2), radius, size)


def coverage(rng: np.random.Generator, name: str, centre: npt.NDArray[np.float64], radius: float, size: int) -> Floats:
    """Draw a shape of a class at a place, turned by a random angle, and return its coverage of each pixel, `[size, size]` in 0..1.

    Args:
        rng: source of the angle and of the shape's proportions.
        name: name of the shape, out of `SHAPES` and `OTHER_SHAPES`.
        centre: x and y of the centre, relative to the side length of the image.
        radius: radius of the circle around the shape, relative to the side length of the image.
        size: width and height of the image in pixels.
    """
    angle = rng.uniform(0, 2 * np.pi)
    image, pen = _canvas(size)
    if name in ("circle", "ring"):
        _disc(pen, centre, radius, size, fill=255)
        if name == "ring":
            _disc(pen, centre, radius * rng.uniform(0.5, 0.65), size, fill=0)
    else:
        points = _OUTLINES[name](rng) @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        pen.polygon(_pixels(centre + radius * points, size), fill=255)
    return _downsampled(image)


def _triangle(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    angles = np.array([0, 1, 2]) * 2 * np.pi / 3 + rng.uniform(-0.25, 0.25, 3)
    return np.stack([np.cos(angles), np.sin(angles)], -1)


def _square(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    half = 0.5 * math.sqrt(2)
    return np.array([[-half, -half], [half, -half], [half, half], [-half, half]])


def _star(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    angles = np.arange(10) * np.pi / 5
    lengths = np.where(np.arange(10) % 2 == 0, 1.0, rng.uniform(0.38, 0.5))
    return np.stack([lengths * np.cos(angles), lengths * np.sin(angles)], -1)


def _cross(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    arm = rng.uniform(0.22, 0.36)
    tip = math.sqrt(1 - arm**2)  # puts the corners on the unit circle, like those of the other shapes
    quarter = np.array([[tip, -arm], [tip, arm], [arm, arm]])
    turns = [np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]) for turn in np.arange(4) * np.pi / 2]
    return np.concatenate([quarter @ turn for turn in turns])


def _arrow(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    half = rng.uniform(0.16, 0.24)
    return np.array([[1, 0], [0.1, 0.8], [0.1, half], [-0.95, half], [-0.95, -half], [0.1, -half], [0.1, -0.8]])


def _bar(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    half = rng.uniform(0.2, 0.3)
    tip = math.sqrt(1 - half**2)
    return np.array([[-tip, -half], [tip, -half], [tip, half], [-tip, half]])


_OUTLINES = {"triangle": _triangle, "square": _square, "star": _star, "cross": _cross, "arrow": _arrow, "bar": _bar}
"""Functions that return the corners of each polygonal outline, `[n, 2]` within the unit circle."""


def distractor(rng: np.random.Generator, size: int) -> Floats:
    """Draw a line, a bent stroke or a group of specks, smaller or thinner than any shape, and return its pixel coverage."""
    image, pen = _canvas(size)
    start = rng.random(2)
    kind = rng.integers(3)
    width = round(size * _OVERSAMPLING * rng.uniform(0.012, 0.035))
    if kind == 0:
        pen.line(_pixels(np.stack([start, start + rng.uniform(-0.5, 0.5, 2)]), size), fill=255, width=width)
    elif kind == 1:
        steps = np.cumsum(rng.uniform(-0.13, 0.13, (4, 2)), axis=0)
        pen.line(_pixels(np.concatenate([start[None], start + steps]), size), fill=255, width=width, joint="curve")
    else:
        for centre in start + rng.uniform(-0.12, 0.12, (rng.integers(2, 6), 2)):
            _disc(pen, centre, rng.uniform(0.01, 0.03), size, fill=255)
    return _downsampled(image)


def _canvas(size: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("L", (size * _OVERSAMPLING, size * _OVERSAMPLING))
    return image, ImageDraw.Draw(image)


def _downsampled(image: Image.Image) -> Floats:
    coverage: Floats = np.asarray(image.reduce(_OVERSAMPLING), dtype=np.float32) / np.float32(255)
    return coverage


def _pixels(points: npt.NDArray[np.float64], size: int) -> list[tuple[float, float]]:
    """Convert points relative to the side length of the image to pixels of the oversampled canvas."""
    return [(float(x), float(y)) for x, y in points * size * _OVERSAMPLING]


def _disc(pen: ImageDraw.ImageDraw, centre: npt.NDArray[np.float64], radius: float, size: int, fill: int) -> None:
    pen.ellipse(_pixels(np.stack([centre - radius, centre + radius]), size), fill=fill)
