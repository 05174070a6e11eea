"""How large images are, without decoding them."""

from __future__ import annotations

import io
import struct
from pathlib import Path

from PIL import ExifTags, Image

from tlcli.contract.images.decoding import FORMATS
from tlcli.training.data.array_source import ArraySource
from tlcli.training.data.dataset import Source
from tlcli.training.data.folder_source import FolderSource

_LYING = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""

_PNG_EXIF = {"exif", "Raw profile type exif"}


def image_size(source: Source, name: str) -> tuple[int, int] | None:
    """Width and height of an upright image, as its header says; None if it cannot be read any more.

    Args:
        source: where it comes from.
        name: as in `Part.names`.
    """
    try:
        match source:
            case FolderSource(root=root):
                return _of_file(root / name)
            case ArraySource():
                part, index = name.rsplit("/", 2)[1:]
                kept = source.parts[part].image(int(index))
                return _of_file(io.BytesIO(kept)) if isinstance(kept, bytes) else _upright(kept)
            case _:
                return source.load(name).size
    except Exception:  # noqa: BLE001 - Pillow's and each library's own; a size that is not known hurts nobody
        return None


def _of_file(file: Path | io.BytesIO) -> tuple[int, int]:
    with Image.open(file, formats=FORMATS) as opened:
        return _upright(opened)


def _upright(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    if image.format == "TIFF":
        return width, height  # Pillow has turned them already
    if image.format == "PNG" and not _PNG_EXIF & image.info.keys():
        return width, height  # it would decode all of the image in search of EXIF data at its end
    try:
        lies = image.getexif().get(ExifTags.Base.Orientation) in _LYING
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, ZeroDivisionError, struct.error):
        lies = False  # as `tlcli.contract.images.decoding` takes EXIF data that cannot be read
    return (height, width) if lies else (width, height)
