"""Decoding in processes, for images whose cost their size does not bound: limits of time and memory, and the same pixels."""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.helpers.contract.hostile_images import encoded, gif_with_comment, jpeg_with_segments, photo, scan_bomb
from tlcli.contract.errors import ImageError
from tlcli.contract.images.decoding import ImageLimits
from tlcli.contract.images.network_input import NetworkInput, from_encoded
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.service.decoding.decode_process import DecodeProcesses
from tlcli.service.decoding.image_pipeline import NotPlainError, decode_plain

INPUT = Preprocessing(height=32, width=32)


@pytest.fixture(scope="module")
def processes() -> Iterator[DecodeProcesses]:
    processes = DecodeProcesses(ImageLimits(), max_decode_s=0.5)
    yield processes
    processes.close()


def admitted(memory_bytes: int) -> None:
    """Admit any amount of memory."""


def read(processes: DecodeProcesses, data: bytes) -> NetworkInput:
    return processes.decode(data, INPUT, True, admitted)


@pytest.mark.parametrize("image_format", ["TIFF", "AVIF", "PNG"])
def test_a_process_decodes_to_the_same_input(processes: DecodeProcesses, image_format: str) -> None:
    data = encoded(photo(1500, 900), image_format)
    here, apart = from_encoded(data, INPUT, ImageLimits(), True, admitted), read(processes, data)
    np.testing.assert_array_equal(apart.images, here.images)
    assert (apart.box, apart.scale) == (here.box, here.scale)
    assert here.image is not None
    assert apart.image is not None
    assert apart.image.size == (1024, 614)
    assert apart.image.tobytes() == here.image.tobytes()


@pytest.mark.parametrize("data", [scan_bomb(4000, 20_000), jpeg_with_segments(1_000_000)], ids=["scans", "segments"])
def test_decoding_stops_at_its_time_limit(processes: DecodeProcesses, data: bytes) -> None:
    begun = time.monotonic()
    with pytest.raises(ImageError, match=r"takes more than 0\.5 s to decode"):
        read(processes, data)
    assert time.monotonic() - begun < 5
    assert read(processes, encoded(photo(), "PNG")).images.shape == (1, 32, 32, 3)


def test_an_unusual_but_quick_image_is_decoded(processes: DecodeProcesses) -> None:
    data = gif_with_comment(100_000)
    np.testing.assert_array_equal(read(processes, data).images, from_encoded(data, INPUT, ImageLimits(), False, admitted).images)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_memory_out_of_proportion_to_the_size_is_refused(processes: DecodeProcesses) -> None:
    """The entries of this TIFF all refer to the same 8 MB, of which Pillow reads a copy for each."""
    shared = bytes(8_000_000)
    entries = b"".join(struct.pack("<HHII", 1000 + number, 7, len(shared), 8) for number in range(500))
    data = b"II*\x00" + struct.pack("<I", 8 + len(shared)) + shared + struct.pack("<H", 500) + entries + bytes(4)
    with pytest.raises(ImageError):
        read(processes, data)
    assert read(processes, encoded(photo(), "TIFF")).images.shape == (1, 32, 32, 3)


def test_an_image_that_is_not_plain_is_not_decoded_in_a_thread() -> None:
    with pytest.raises(NotPlainError):
        decode_plain(scan_bomb(4000, 20_000), INPUT, False, admitted, ImageLimits())


def test_memory_is_admitted_before_pixels_are_decoded(processes: DecodeProcesses) -> None:
    asked: list[int] = []

    def refuse(memory_bytes: int) -> None:
        asked.append(memory_bytes)
        raise RuntimeError("none is free")

    for _ in range(2):  # the process is used again
        with pytest.raises(RuntimeError, match="none is free"):
            processes.decode(encoded(photo(1000, 1000), "TIFF"), INPUT, False, refuse)
    assert all(4_000_000 < size < 40_000_000 for size in asked)


def test_a_broken_image_has_the_usual_error(processes: DecodeProcesses) -> None:
    with pytest.raises(ImageError, match="8 bytes are not an image"):
        read(processes, b"no image")
