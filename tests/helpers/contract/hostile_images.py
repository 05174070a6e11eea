"""Small images that are costly to decode for their size."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def photo(width: int = 96, height: int = 64) -> Image.Image:
    """Return an image with detail everywhere."""
    values = np.random.default_rng(7).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def scan_bomb(side: int, scans: int) -> bytes:
    """Return a grey progressive JPEG with many empty scans."""

    def segment(marker: int, body: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body

    head = segment(0xDB, b"\x00" + bytes([16] * 64)) + segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + bytes([1, 0x11, 0]))
    tables = segment(0xC4, b"\x00" + bytes([1] + [0] * 15) + b"\x00") + segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\xe0")
    first = segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes(16)
    return b"\xff\xd8" + head + tables + first + segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) * scans + b"\xff\xd9"


def jpeg_with_segments(segments: int) -> bytes:
    """Return a JPEG with many empty comments."""
    jpeg = encoded(photo(), "JPEG")
    return jpeg[:2] + b"\xff\xfe\x00\x02" * segments + jpeg[2:]


def jpeg_with_exif(entries: int) -> bytes:
    """Return a JPEG whose EXIF entries all refer to the same 60,000 bytes."""
    ifd = struct.pack("<H", entries) + b"".join(struct.pack("<HHII", 1000 + number, 7, 60_000, 8) for number in range(entries))
    exif = b"Exif\x00\x00II*\x00" + struct.pack("<I", 8) + ifd
    exif += bytes(65_000 - len(exif))
    jpeg = encoded(photo(), "JPEG")
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(chunks: bytes, image: Image.Image | None = None) -> bytes:
    """Return a PNG with more chunks after its header."""
    png = encoded(image or photo(), "PNG")
    return png[:33] + chunks + png[33:]


def gif_with_comment(size: int) -> bytes:
    """Return a GIF whose comment is split into blocks of 255 bytes."""
    gif = encoded(photo().convert("P"), "GIF")
    frame = gif.index(b",\x00\x00\x00\x00")
    return gif[:frame] + b"!\xfe" + (b"\xff" + b"a" * 255) * (size // 255) + b"\x00" + gif[frame:]


def lying_avif(claimed: int, coded: int) -> bytes:
    """Return an AVIF whose header claims a smaller square than is coded."""
    avif = bytearray(encoded(Image.new("RGB", (coded, coded), "orange"), "AVIF", speed=10))
    place = avif.index(b"ispe") + 8
    avif[place : place + 8] = struct.pack(">II", claimed, claimed)
    return bytes(avif)
