"""Encoded bytes to an RGB picture, in one place for training, export, `predict` and the server."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from contract.errors import NotFoundError, PictureError, first_line
from contract.files import read_bounded

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Pillow's decoders that are tried; the rest of Pillow's long list never sees a byte. MPO, what some cameras
write, is opened by JPEG's and has no entry of its own: naming it here would fail every format after it."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
"""File names that count as pictures when a folder is read."""

_EXIF_ORIENTATION = 0x0112

# Pillow warns of what is judged here: size, odd metadata. Set once: `catch_warnings` is not safe among threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\..*")


@dataclass(frozen=True)
class PictureLimits:
    """What a picture may cost before it is refused.

    max_bytes: of the encoded picture.
    max_pixels: width times height, read from the header before anything is decoded.
    """

    max_bytes: int = 32 * 1024 * 1024
    max_pixels: int = 50_000_000


DEFAULT_LIMITS = PictureLimits()


def decode(data: bytes, limits: PictureLimits = DEFAULT_LIMITS) -> Image.Image:
    """Decode one picture as a person would see it.

    The first frame of an animation; turned by its EXIF orientation; transparency laid on white;
    16-bit greys scaled to 8 bits; every colour model converted to RGB.

    Args:
        data: an encoded JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF picture.
        limits: refused above these.

    Returns:
        A loaded Pillow image of mode "RGB", at least 1x1.

    Raises:
        PictureError: empty, not a picture, truncated, over a limit, or of a mode without colours.
    """
    if not data:
        raise PictureError("the picture is empty: 0 bytes came, an encoded picture (JPEG, PNG, ...) was expected")
    if len(data) > limits.max_bytes:
        raise PictureError(f"the picture has {len(data):,} bytes, at most {limits.max_bytes:,} are read: send a smaller one")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > limits.max_pixels:
            raise PictureError(
                f"the picture claims {width:,} x {height:,} pixels, at most {limits.max_pixels:,} are decoded: send a smaller one"
            )
        image.load()
        return to_rgb(image)
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError(
            f"{len(data):,} bytes came that are no picture (they begin {data[:8]!r}): expected one of {', '.join(FORMATS)}"
        ) from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"the picture claims more than {limits.max_pixels:,} pixels: send a smaller one") from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        IndexError,
        TypeError,
        KeyError,
        EOFError,
        OverflowError,
        RuntimeError,
        struct.error,
    ) as error:
        # What Pillow's decoders raise on broken data, by its own documentation and fuzzing.
        raise PictureError(f"the picture cannot be decoded: {first_line(error)}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded Pillow picture as `decode` gives it: upright, without transparency, RGB. For pictures that came without a file.

    Raises:
        PictureError: of a mode without colours.
    """
    return _to_rgb(_upright(image))


def read(path: str | Path, limits: PictureLimits = DEFAULT_LIMITS) -> Image.Image:
    """Read and `decode` a picture file.

    Raises:
        NotFoundError: no such file.
        PictureError: see `decode` and `read_encoded`; the message begins with the path.
    """
    data = read_encoded(path, limits.max_bytes)
    try:
        return decode(data, limits)
    except PictureError as error:
        raise PictureError(f"{path}: {error}") from error


def read_encoded(path: str | Path, max_bytes: int) -> bytes:
    """Read the bytes of an image file.

    Raises:
        NotFoundError: no such file.
        PictureError: one that may not be read, a pipe that nobody writes to, a device, or more than `max_bytes`.
    """
    try:
        data = read_bounded(path, max_bytes)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"{path}: {error.strerror}") from error
    except OSError as error:
        raise PictureError(f"{path}: {error.strerror or error}") from error
    if len(data) > max_bytes:
        raise PictureError(f"{path}: the image has more than {max_bytes:,} bytes: send a smaller one")
    return data


def find(paths: Iterable[str | Path]) -> list[Path]:
    """The picture files named by `paths`: files as they are, folders searched (by `SUFFIXES`), sorted within each.

    Raises:
        NotFoundError: a path that does not exist, or a folder without a picture.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(child for child in path.rglob("*") if child.suffix.lower() in SUFFIXES and child.is_file())
            if not inside:
                raise NotFoundError(f"{path}: no picture in this folder (looked for {', '.join(sorted(SUFFIXES))})")
            found.extend(inside)
        elif path.exists():
            found.append(path)
        else:
            raise NotFoundError(f"{path}: no such file or folder")
    return found


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        return ImageOps.exif_transpose(image) if orientation != 1 else image
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, ZeroDivisionError, struct.error):
        return image  # unreadable EXIF data says nothing about the picture itself


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _from_integers(image)
    if image.mode == "F":
        raise PictureError("the picture holds floating-point values, which have no agreed range: save it with 8 or 16 bits a channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _from_integers(image: Image.Image) -> Image.Image:
    """Greys of 16 bits (Pillow's modes I;16*, and I, which holds them in 32) to RGB: `convert` alone would clip at 255."""
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 0xFFFF:
        raise PictureError(f"the picture holds integers from {low} to {high}: 8 or 16 bits a channel were expected")
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
