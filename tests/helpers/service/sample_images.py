"""Valid and invalid images for tests."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
Box = tuple[int, int, int, int]


def scene(color: tuple[int, int, int], box: Box, size: tuple[int, int] = (256, 192), seed: int = 0) -> Image.Image:
    """Create a grey, noisy image with one coloured rectangle."""
    noise = np.random.default_rng(seed).integers(90, 130, (size[1], size[0], 1), dtype=np.uint8)
    image = Image.fromarray(np.repeat(noise, 3, axis=2))
    image.paste(color, box)
    return image


def encode(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """Create a valid PNG file except for its size: only a few bytes of pixels follow."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def as_stored(seen: Image.Image, orientation: int) -> bytes:
    """Encode a JPEG whose pixels are stored rotated, with the EXIF orientation that displays them as `seen`."""
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = seen if undo is None else seen.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(stored, "JPEG", quality=95, exif=exif)


@functools.cache
def slow_image() -> bytes:
    """Create an image of a few hundred bytes that takes a good part of a second to decode: many pixels of one colour."""
    return encode(Image.new("RGB", (5000, 5000), RED), "WEBP", lossless=True)
