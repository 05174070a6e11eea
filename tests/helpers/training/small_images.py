"""Small images on disk for tests of data sets."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def put_image(path: Path, content: str | None = None, size: tuple[int, int] = (8, 6)) -> None:
    """Write a small image determined by `content`, by default the last three components of the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32((content or "/".join(path.parts[-3:])).encode())
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def put_classes(folder: Path, **counts: int) -> Path:
    """Write `<folder>/<class>/<number>.png`, with the given number of images of each class."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            put_image(folder / name / f"{number:03d}.png")
    return folder
