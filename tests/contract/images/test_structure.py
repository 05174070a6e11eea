"""Images whose decoding costs are proportional to their size, and images that only look like that."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from tests.helpers.contract.hostile_images import (
    encoded,
    gif_with_comment,
    jpeg_with_exif,
    jpeg_with_segments,
    lying_avif,
    photo,
    png_chunk,
    png_with,
    scan_bomb,
)
from tlcli.contract.images.structure import is_plain, jpeg_keeps_coefficients

ROTATED = Image.Exif()
ROTATED[0x0112] = 6


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"exif": ROTATED, "icc_profile": bytes(200_000), "comment": b"made by hand"}),
        ("PNG", {}),
        ("PNG", {"exif": ROTATED}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": ROTATED, "quality": 50}),
        ("GIF", {}),
        ("BMP", {}),
    ],
)
def test_usual_images_are_plain(image_format: str, options: dict[str, Any]) -> None:
    assert is_plain(encoded(photo(), image_format, **options))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(scan_bomb(2000, 1000), id="scans"),
        pytest.param(jpeg_with_segments(2000), id="segments"),
        pytest.param(jpeg_with_exif(500), id="overlapping EXIF entries"),
        pytest.param(png_with(png_chunk(b"abCd", b"") * 30_000), id="chunks"),
        pytest.param(gif_with_comment(100_000), id="GIF comment"),
        pytest.param(encoded(photo(7000, 6900), "PNG"), id="48 Mpx"),
        pytest.param(lying_avif(64, 256), id="AVIF"),
        pytest.param(encoded(photo(), "TIFF"), id="TIFF"),
        pytest.param(encoded(photo(), "JPEG")[:300], id="cut short"),
        pytest.param(b"no image", id="no image"),
    ],
)
def test_what_may_cost_more_than_its_size_tells_is_not_plain(data: bytes) -> None:
    assert not is_plain(data)


@pytest.mark.parametrize(("options", "keeps"), [({}, False), ({"progressive": True}, True)])
def test_a_decoder_keeps_the_coefficients_of_several_scans(options: dict[str, Any], keeps: bool) -> None:
    assert jpeg_keeps_coefficients(encoded(photo(), "JPEG", **options)) == keeps
