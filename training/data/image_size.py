"""Image dimensions, read from file headers without decoding where possible."""

from __future__ import annotations

import io
import struct
from pathlib import Path

from PIL import ExifTags, Image

from tlcli.contract.images.decoding import FORMATS
from tlcli.training.data.array_source import ArraySource
from tlcli.training.data.dataset import Source
from tlcli.training.data.folder_source import FolderSource

_SWAPPED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""

_PNG_EXIF = {"exif", "Raw profile type exif"}


def image_size(source: Source, name: str) -> tuple[int, int] | None:
    """Return the width and height of an image after upright rotation; None if the image can no longer be read.

    The size is read from the file header where possible.

    Args:
        source: image source.
        name: name of the image, as in `Part.names`.
    """
    try:
        match source:
            case FolderSource(root=root):
                return _of_file(root / name)
            case ArraySource():
                part, index = name.rsplit("/", 2)[1:]
                content = source.parts[part].image(int(index))
                return _of_file(io.BytesIO(content)) if isinstance(content, bytes) else _upright(content)
            case _:
                return source.load(name).size
    except Exception:  # noqa: BLE001 - Pillow and each data set library raise their own exceptions; an unknown size is harmless
        return None


def _of_file(file: Path | io.BytesIO) -> tuple[int, int]:
    with Image.open(file, formats=FORMATS) as opened:
        return _upright(opened)


def _upright(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    if image.format == "TIFF":
        return width, height  # already rotated by Pillow
    if image.format == "PNG" and not _PNG_EXIF & image.info.keys():
        return width, height  # Pillow would decode the entire image to look for EXIF data at its end
    try:
        is_swapped = image.getexif().get(ExifTags.Base.Orientation) in _SWAPPED
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, ZeroDivisionError, struct.error):
        is_swapped = False  # `tlcli.contract.images.decoding` ignores unreadable EXIF data too
    return (height, width) if is_swapped else (width, height)
