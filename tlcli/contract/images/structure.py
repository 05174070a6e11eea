"""Static checks of encoded images for structures that are slow to decode or need much memory for their size.

A small file can keep a decoder busy for minutes, for example with a hundred thousand empty scans in a progressive JPEG, millions of empty
chunks in a PNG, or a GIF comment that grows by 255 bytes at a time. `is_plain` recognises images whose decoding cost is bounded by their
numbers of pixels and bytes. It reads only headers, which takes microseconds. It never rejects an image: False means that no bound is known.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

PLAIN_S = 0.5
"""Maximum estimated decoding time of a plain image, in seconds."""

_MAX_SEGMENTS = 1024
"""Maximum number of JPEG segments before the first scan; an ICC profile alone may take 255. Pillow spends 2 microseconds on each."""

_MAX_CHUNKS = 20_000
"""Maximum number of PNG chunks; 32 MiB in chunks of 8 KiB are 4,096. Pillow spends 6 microseconds on each."""

_MAX_EXTENSION_BYTES = 1 << 16
"""Maximum size in bytes of a GIF's extensions before its first frame."""

_MAX_EXIF_BYTES = 1 << 16
_MAX_EXIF_ENTRIES = 512

_PIXEL_S = {"JPEG": 16e-9, "PNG": 20e-9, "WEBP": 50e-9, "GIF": 20e-9, "BMP": 5e-9}
_BYTE_S = 30e-9
_BLOCK_S = 10e-9
"""Decoding time in seconds per pixel, per byte, and per 8 x 8 block of each JPEG scan, measured on one server CPU core with Pillow 13 and
libjpeg-turbo 3.2."""

PNG = b"\x89PNG\r\n\x1a\n"
_EXIF = b"Exif\x00\x00"
_STANDALONE = {0x01, *range(0xD0, 0xD9)}
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_HUFFMAN_FRAMES = {0xC0, 0xC1, 0xC2}
_APP1, _SCAN = 0xE1, 0xDA
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}


def is_plain(data: bytes) -> bool:
    """Return True if decoding takes time and memory proportional to pixels and bytes, and is estimated to take less than `PLAIN_S`.

    False does not mean that the image is invalid. It means that the estimate is higher, or that this module does not support the image's
    structure, as with every TIFF and AVIF and many damaged files. Decode such an image in a process that can be killed.
    """
    for magic, judge in _JUDGES:
        if data.startswith(magic):
            try:
                return judge(data)
            except (ValueError, IndexError, struct.error):
                return False
    return False


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type, start and end of each chunk of a PNG, up to IEND or the end of a truncated file."""
    start, size = len(PNG), len(data)
    while start + 12 <= size:
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        yield kind, start, end
        if kind == b"IEND":
            return
        start = end


def _quick(kind: str, width: int, height: int, size: int, visits: int = 0) -> bool:
    return width * height * _PIXEL_S[kind] + size * _BYTE_S + visits * _BLOCK_S < PLAIN_S


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker, body start and body end of each segment of a JPEG, up to and including its first scan header.

    Raises:
        ValueError: there are bytes between segments, or too many segments.
        struct.error, IndexError: the file is truncated.
    """
    start = 2
    for _ in range(_MAX_SEGMENTS):
        if data[start] != 0xFF:
            raise ValueError
        marker = data[start + 1]
        if marker == 0xFF or marker in _STANDALONE:
            start += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", data, start + 2)
        yield marker, start + 4, start + 2 + length
        if marker == _SCAN:
            return
        start += 2 + length
    raise ValueError


def jpeg_keeps_coefficients(data: bytes) -> bool:
    """Return True if a decoder must keep all coefficients of a JPEG in memory.

    It must unless the JPEG is sequential and its first scan contains all components. The result is also True for unsupported structures.
    """
    try:
        frame = next(((marker, data[begin + 5]) for marker, begin, _ in jpeg_segments(data) if marker in _FRAMES), (0, 0))
        scan = next(data[begin] for marker, begin, _ in jpeg_segments(data) if marker == _SCAN)
    except (ValueError, IndexError, struct.error, StopIteration):
        return True
    return frame[0] not in (0xC0, 0xC1) or scan < frame[1]


def _plain_jpeg(data: bytes) -> bool:
    """Return True if a JPEG's structure up to its first scan is supported and its scans can be decoded quickly.

    The time estimate counts the blocks of all scans, because even an empty scan takes time for each block.
    """
    frame, exif_segments = b"", 0
    for marker, begin, end in jpeg_segments(data):
        if marker in _FRAMES:
            if frame or marker not in _HUFFMAN_FRAMES:
                return False
            frame = bytes([marker]) + data[begin:end]
        elif marker == _APP1 and data.startswith(_EXIF, begin):
            exif_segments += 1
            if exif_segments > 1 or not _plain_exif(data[begin + len(_EXIF) : end]):
                return False
        elif marker == _SCAN:
            return bool(frame) and _quick_scans(data, frame, scan_components=data[begin])
    return False


def _quick_scans(data: bytes, frame: bytes, scan_components: int) -> bool:
    marker, _, height, width, components = struct.unpack_from(">BBHHB", frame)
    visits = 0
    if marker == 0xC2 or scan_components < components:
        scans = data.count(b"\xff\xda")  # an upper bound: coded data never contain this pair, but metadata may
        visits = scans * components * ((width + 7) // 8) * ((height + 7) // 8)
    return height > 0 and _quick("JPEG", width, height, len(data), visits)


def _plain_png(data: bytes) -> bool:
    if data[12:16] != b"IHDR":
        return False
    width, height = struct.unpack_from(">II", data, 16)
    for number, (kind, start, end) in enumerate(png_chunks(data)):
        if number > _MAX_CHUNKS or (kind == b"eXIf" and not _plain_exif(data[start + 8 : end - 4])):
            return False
    return _quick("PNG", width, height, len(data))


def _plain_webp(data: bytes) -> bool:
    if data[8:12] != b"WEBP":
        return False
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    elif kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, 21)
        width, height = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    elif kind == b"VP8X":
        width, height = (int.from_bytes(data[start : start + 3], "little") + 1 for start in (24, 27))
        for number, (fourcc, body) in enumerate(_riff_chunks(data)):
            if number > _MAX_CHUNKS or (fourcc == b"EXIF" and not _plain_exif(body.removeprefix(_EXIF))):
                return False
    else:
        return False
    return _quick("WEBP", width, height, len(data))


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the FourCC and body of each RIFF chunk. The body is empty for all chunks other than EXIF."""
    start = 12
    while start + 8 <= len(data):
        fourcc, length = struct.unpack_from("<4sI", data, start)
        yield fourcc, data[start + 8 : start + 8 + length] if fourcc == b"EXIF" else b""
        start += 8 + length + (length & 1)


def _plain_gif(data: bytes) -> bool:
    """Check a GIF's extensions before its first frame, which Pillow reads in Python."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    start = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    limit = start + _MAX_EXTENSION_BYTES
    while start < limit:
        if data[start] == 0x2C:
            left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, start + 1)
            return _quick("GIF", max(width, left + frame_width), max(height, top + frame_height), len(data))
        if data[start] != 0x21:
            return False
        start += 2
        while data[start] and start < limit:
            start += 1 + data[start]
        start += 1
    return False


def _plain_bmp(data: bytes) -> bool:
    """Check a BMP. Only uncompressed files are plain, because Pillow decodes run-length encoding in Python."""
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return _quick("BMP", width, height, len(data))
    width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
    return header >= 40 and compression in (0, 3) and _quick("BMP", abs(width), abs(height), len(data))


def _plain_exif(data: bytes) -> bool:
    """Check the total size of the EXIF entries.

    Entries may overlap: a thousand entries that each span the entire block would produce a thousand copies of it.
    """
    if not data:
        return True
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) > _MAX_EXIF_BYTES:
        return False
    (start,) = struct.unpack_from(order + "I", data, 4)
    if start + 2 > len(data):
        return True  # no entries, as Pillow reads it too
    (entries,) = struct.unpack_from(order + "H", data, start)
    if entries > _MAX_EXIF_ENTRIES:
        return False
    claimed = 0
    for number in range(entries):
        position = start + 2 + 12 * number
        if position + 12 > len(data):
            break
        kind, count = struct.unpack_from(order + "HI", data, position + 2)
        claimed += count * _TIFF_SIZES.get(kind, 8)
    return claimed <= 2 * _MAX_EXIF_BYTES


_JUDGES = ((b"\xff\xd8\xff", _plain_jpeg), (PNG, _plain_png), (b"RIFF", _plain_webp), (b"GIF8", _plain_gif), (b"BM", _plain_bmp))
