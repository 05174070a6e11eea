"""Parser for the sizes of the coded images in an AVIF file. A decoder processes these images even if the header claims a smaller size."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_SEQUENCE_HEADER = 1
_MAX_ITEMS = 65_536
"""Maximum number of items to read. The largest grid has this many tiles, and no file needs more."""


def coded_pixels(data: bytes) -> list[int]:
    """Return the number of pixels of each coded image in an AVIF file: the image, its alpha channel, a thumbnail, each tile of a grid.

    Returns:
        One number per coded item, with 0 for items without an AV1 sequence header. The list is empty if the data are not AVIF or have a
        structure that this parser does not support.
    """
    try:
        return [_sequence_pixels(data, begin, end) for begin, end in _extents(data)]
    except (struct.error, IndexError):
        return []


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type, content start and content end of each box (ISO/IEC 14496-12, 4.2)."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        begin = start + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, begin)
            begin += 8
        stop = end if size == 0 else min(start + size, end)
        yield kind, begin, stop
        if stop <= start:
            return
        start = stop


def _child(data: bytes, kind: bytes, start: int, end: int) -> tuple[int, int]:
    return next(((begin, stop) for box_kind, begin, stop in _boxes(data, start, end) if box_kind == kind), (0, 0))


def _extents(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the start and end of the first extent of each item in the file (ISO/IEC 14496-12, 8.11.3)."""
    meta, meta_end = _child(data, b"meta", 0, len(data))
    start, end = _child(data, b"iloc", meta + 4, meta_end)
    idat, _ = _child(data, b"idat", meta + 4, meta_end)
    if not start:
        return
    version = data[start]
    offset_size, length_size, base_size, index_size = data[start + 4] >> 4, data[start + 4] & 15, data[start + 5] >> 4, data[start + 5] & 15
    position = start + 6
    items, position = _number(data, position, 2 if version < 2 else 4)
    for _ in range(min(items, _MAX_ITEMS)):
        position += 2 if version < 2 else 4
        method = 0
        if version:
            method, position = _number(data, position, 2)
        base, position = _number(data, position + 2, base_size)
        extents, position = _number(data, position, 2)
        for extent in range(extents):
            position += index_size if version else 0
            offset, position = _number(data, position, offset_size)
            length, position = _number(data, position, length_size)
            begin = (idat if method & 15 == 1 else 0) + base + offset
            if extent == 0 and position <= end:
                yield begin, min(begin + length, len(data)) if length else len(data)


def _number(data: bytes, start: int, size: int) -> tuple[int, int]:
    if start + size > len(data):
        raise IndexError
    return int.from_bytes(data[start : start + size], "big"), start + size


def _sequence_pixels(data: bytes, start: int, end: int) -> int:
    """Return the number of pixels of the largest frame that an item's sequence header allows, or 0 for an item without such a header.

    See the AV1 bitstream specification, 5.3 and 5.5.
    """
    while start < end:
        head = data[start]
        start += 2 if head & 4 else 1
        if head & 0x80 or not head & 2:
            return 0  # not AV1, or a unit without a size, which is the last unit
        size = shift = 0
        while True:
            byte = data[start]
            start += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80 or shift > 56:
                break
        if head >> 3 & 15 == _SEQUENCE_HEADER:
            return _frame_pixels(data[start : min(start + size, end)])
        start += size
    return 0


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data[:64], "big")
        self._left = 8 * len(data[:64])

    def take(self, count: int) -> int:
        if count > self._left:
            raise IndexError
        self._left -= count
        return self._value >> self._left & (1 << count) - 1


def _frame_pixels(header: bytes) -> int:
    bits = _Bits(header)
    bits.take(4)  # seq_profile, still_image
    if bits.take(1):  # reduced_still_image_header
        bits.take(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return (bits.take(width_bits) + 1) * (bits.take(height_bits) + 1)


def _skip_operating_points(bits: _Bits) -> None:
    decoder_model, delay_bits = 0, 0
    if bits.take(1):  # timing_info_present_flag
        bits.take(64)
        if bits.take(1):  # equal_image_interval: a number in Exp-Golomb code
            zeros = 0
            while not bits.take(1):
                zeros += 1
            bits.take(zeros)
        decoder_model = bits.take(1)
        if decoder_model:
            delay_bits = bits.take(5) + 1
            bits.take(32 + 5 + 5)
    display_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)  # seq_tier
        if decoder_model and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if display_delay and bits.take(1):
            bits.take(4)
