"""Repair of files that Pillow rejects although their image is intact: PNGs with large metadata, and JPEGs without an end marker."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

from tlcli.contract.images.structure import PNG, png_chunks

_COMPRESSED = (b"zTXt", b"iTXt", b"iCCP")
_SAFE_BYTES = 1000
"""Compressed size up to which a chunk cannot expand to 1 MiB, the size at which Pillow rejects the entire image."""

_MAX_EXPANDED_BYTES = 1 << 20
_MAX_XMP_CHUNKS = 8
"""Maximum number of XMP chunks that are expanded to measure their size, which takes 2 ms each. A PNG should have one (XMP specification,
part 3)."""

_XMP = b"XML:com.adobe.xmp\x00"

_END = b"\xff\xd9"
_FILLERS = (b"\x5a" * 64, b"\xc3" * 64)


def without_metadata(data: bytes) -> bytes:
    """Remove colour profiles and text chunks that may be too large for Pillow from a PNG. Other data are returned unchanged.

    The removed chunks do not affect the pixels. XMP, which may contain the orientation, is kept unless it is too large itself.
    """
    if not data.startswith(PNG):
        return data
    pieces, begin, measured = [], 0, 0
    try:
        for kind, start, end in png_chunks(data):
            if kind not in _COMPRESSED or end - start - 12 <= _SAFE_BYTES:
                continue
            if data.startswith(_XMP, start + 8) and measured < _MAX_XMP_CHUNKS:
                measured += 1
                if _is_small_xmp(data[start + 8 : end - 4]):
                    continue
            pieces.append(data[begin:start])
            begin = end
    except struct.error:
        return data
    return b"".join([*pieces, data[begin:]]) if begin else data


def with_end(data: bytes) -> Image.Image | None:
    """Decode a JPEG whose only fault is a missing end marker (EOI). Return None for any other fault.

    If coded data are missing, the decoder continues into the bytes that follow. Therefore the data are decoded with different fillers
    appended. The image is complete if its pixels do not depend on the filler.
    """
    if not data.startswith(b"\xff\xd8") or data.endswith(_END):
        return None
    try:
        if not _has_all_scans(data):
            return None
        whole = _decoded(data + _END)
        pixels = whole.tobytes()
        return whole if all(_decoded(data + filler + _END).tobytes() == pixels for filler in _FILLERS) else None
    except (OSError, SyntaxError, ValueError, IndexError):
        return None


def _decoded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    image.load()
    return image


def _is_small_xmp(chunk: bytes) -> bool:
    if not chunk[len(_XMP)]:
        return len(chunk) <= _MAX_EXPANDED_BYTES
    text = chunk[len(_XMP) + 2 :].split(b"\x00", 2)[-1]
    try:
        return len(zlib.decompressobj().decompress(text, _MAX_EXPANDED_BYTES + 1)) <= _MAX_EXPANDED_BYTES
    except zlib.error:
        return False


def _has_all_scans(data: bytes) -> bool:
    """Return True if the scan headers show that every coefficient of every component is refined to full precision."""
    start = data.rfind(b"\xff\xc2", 0, data.find(b"\xff\xda"))
    if start < 0:
        return True  # not progressive: a missing scan shows as missing data
    components = data[start + 9]
    missing = {(component, index) for component in data[start + 10 : start + 10 + 3 * components : 3] for index in range(64)}
    start = data.find(b"\xff\xda", start)
    while start >= 0:
        count = data[start + 4]
        first, last, precision = data[start + 5 + 2 * count : start + 8 + 2 * count]
        if not precision & 15:
            members = data[start + 5 : start + 5 + 2 * count : 2]
            missing -= {(component, index) for component in members for index in range(first, last + 1)}
        start = data.find(b"\xff\xda", start + 2)
    return not missing
