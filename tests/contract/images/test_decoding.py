"""Unusual images are decoded as an image viewer would show them, or rejected in one line."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.helpers.contract.hostile_images import lying_avif, png_chunk, png_with
from tlcli.contract.errors import ImageError, NotFoundError
from tlcli.contract.images.decoding import ImageLimits, decode, decoding_bytes, find, read, to_rgb


def encoded(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def photograph(width: int = 40, height: int = 30) -> Image.Image:
    """Return a smooth image, so that lossy formats stay close, which differs from itself in every rotation and reflection."""
    down, across = np.mgrid[:height, :width]
    red, green = 255 * across / (width - 1), 255 * down / (height - 1)
    return Image.fromarray(np.stack([red, green, 0.3 * red + 0.2 * green], -1).astype(np.uint8))


def pixels(data: bytes) -> np.ndarray:
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "GIF"])
def test_lossless_formats_keep_every_pixel(image_format: str) -> None:
    image = photograph().quantize(64).convert("RGB")  # GIF holds no more colours
    np.testing.assert_array_equal(pixels(encoded(image, image_format)), np.asarray(image))


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP", "AVIF", "MPO"])
def test_lossy_formats_come_near(image_format: str) -> None:
    difference = pixels(encoded(photograph(), image_format, quality=95)).astype(int) - np.asarray(photograph())
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "MPO"])
def test_first_image_of_a_process_may_be_of_any_format(image_format: str, tmp_path: Path) -> None:
    """Pillow loads its decoders lazily, so a format may fail at first and work later."""
    path = tmp_path / "first"
    path.write_bytes(encoded(photograph(), image_format))
    code = f"from tlcli.contract.images.decoding import read; print(read({str(path)!r}).size)"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert asked.stdout.strip() == "(40, 30)", asked.stderr


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 256 * 4).round().astype(np.uint16).reshape(4, 256)
    seen = pixels(encoded(Image.fromarray(values)))
    np.testing.assert_array_equal(seen, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, -1))


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_16_bit_tiff_in_either_byte_order(byte_order: str) -> None:
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    order = "I;16" if byte_order == "<u2" else "I;16B"
    image = Image.frombytes(order, (4, 1), values.astype(byte_order).tobytes())
    assert pixels(encoded(image, "TIFF"))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_8_bit_grey_becomes_three_equal_channels() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(values))), np.repeat(values[..., None], 3, -1))


def test_1_bit_is_black_and_white() -> None:
    bits = np.eye(9, dtype=bool)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(bits)))[..., 1], 255 * bits.astype(np.uint8))


def test_alpha_is_laid_on_white() -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(200, 0, 100, 255), (200, 0, 100, 0), (200, 0, 100, 128)])
    seen = pixels(encoded(image))[0]
    assert seen[0].tolist() == [200, 0, 100]
    assert seen[1].tolist() == [255, 255, 255]
    half = 128 / 255
    np.testing.assert_allclose(seen[2], half * np.array([200, 0, 100]) + (1 - half) * 255, atol=1)


def test_grey_with_alpha_is_laid_on_white() -> None:
    image = Image.new("LA", (2, 1))
    image.putdata([(50, 255), (50, 0)])
    assert pixels(encoded(image))[0].tolist() == [[50, 50, 50], [255, 255, 255]]


def test_transparent_palette_entry_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putdata([0, 1])
    seen = pixels(encoded(image, transparency=0))[0]
    assert seen.tolist() == [[255, 255, 255], [200, 100, 0]]


def test_transparent_colour_of_an_rgb_png_is_white() -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    assert pixels(encoded(image, transparency=(1, 2, 3)))[0].tolist() == [[255, 255, 255], [9, 9, 9]]


def test_cmyk_jpeg_shows_its_colours() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    seen = pixels(encoded(image, "JPEG", quality=95)).reshape(-1, 3).mean(0)
    np.testing.assert_allclose(seen, [255, 0, 0], atol=6)


@pytest.mark.parametrize(
    ("orientation", "as_stored"),
    [
        (1, lambda upright: upright),
        (2, lambda upright: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        (3, lambda upright: upright.rotate(180)),
        (4, lambda upright: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM)),
        (5, lambda upright: upright.transpose(Image.Transpose.TRANSPOSE)),
        (6, lambda upright: upright.rotate(90, expand=True)),  # stored rotated left, so it is rotated right
        (7, lambda upright: upright.transpose(Image.Transpose.TRANSVERSE)),
        (8, lambda upright: upright.rotate(-90, expand=True)),
    ],
)
@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_exif_orientation_is_undone(orientation: int, as_stored: object, image_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(as_stored(photograph()), image_format, exif=exif)  # type: ignore[operator]
    np.testing.assert_array_equal(pixels(data), np.asarray(photograph()))


def test_exif_orientation_of_a_jpeg() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    seen = decode(encoded(photograph().rotate(90, expand=True), "JPEG", quality=95, exif=exif))
    assert seen.size == (40, 30)
    assert np.abs(np.asarray(seen).astype(int) - np.asarray(photograph())).mean() < 3


def test_odd_exif_is_no_reason_to_refuse() -> None:
    assert decode(encoded(photograph(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")).size == (40, 30)


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(image_format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options: dict[str, object] = {"lossless": True} if image_format == "WEBP" else {}
    data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:], duration=100, **options)
    assert (pixels(data) == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the image is empty (0 bytes): expected an encoded image"),
        (b"hello, this is text", "19 bytes are not an image (they start with b'hello, t'): expected one of JPEG, PNG, WEBP"),
        (b"\xff\xd8\xff\xe0", "not an image|cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n", "not an image|cannot be decoded"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "are not an image"),
        (b"%PDF-1.7\n", "are not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "are not an image"),
        (png_claiming(100_000, 100_000), "the image claims"),
        (png_claiming(10_000, 5_001), "the image claims 10,000 x 5,001 pixels: expected at most 50,000,000; use a smaller image"),
        (png_claiming(50, 50), "cannot be decoded"),
    ],
)
def test_refused_in_one_line(data: bytes, message: str) -> None:
    with pytest.raises(ImageError) as refusal:
        decode(data)
    assert any(part in str(refusal.value) for part in message.split("|"))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_is_refused(image_format: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    data = encoded(noise, image_format)
    with pytest.raises(ImageError):
        decode(data[: int(share * len(data))])


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_damaged_is_decoded_or_refused_and_nothing_else(image_format: str) -> None:
    data = encoded(photograph(), image_format)
    rng = np.random.default_rng(1)
    for _ in range(150):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 4):
            damaged[place] = rng.integers(256)
        with suppress(ImageError):
            assert decode(bytes(damaged)).mode == "RGB"


def test_floating_point_is_refused() -> None:
    with pytest.raises(ImageError, match="floating-point values, which have no agreed range: save it with 8 or 16 bits"):
        decode(encoded(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF"))


def test_32_bit_integers_are_refused() -> None:
    with pytest.raises(ImageError, match="integers from 0 to 70000: expected 8 or 16 bits"):
        decode(encoded(Image.fromarray(np.array([[0, 70_000]], dtype=np.int32)), "TIFF"))


def sixteen_bits(values: np.ndarray, bits: int = 16) -> bytes:
    """Encode a PNG with 16 bits per channel; Pillow only writes such greys."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("image_format", ["TIFF", "PNG"])
@pytest.mark.parametrize("top", [255, 1023, 4095])
def test_16_bits_that_hold_fewer_are_refused(image_format: str, top: int) -> None:
    values = np.linspace(0, top, 64).astype(np.uint16).reshape(8, 8)
    with pytest.raises(ImageError, match=f"values from 0 to {top:,} where 65,535 is white.*near black: scale them"):
        decode(encoded(Image.fromarray(values), image_format))


def test_32_bit_integers_up_to_255_are_refused_and_up_to_65535_are_16_bits() -> None:
    with pytest.raises(ImageError, match="values from 10 to 255 where 65,535 is white"):
        decode(encoded(Image.fromarray(np.array([[10, 255]], dtype=np.int32)), "TIFF"))
    assert pixels(encoded(Image.fromarray(np.array([[0, 256, 65_535]], dtype=np.int32)), "TIFF"))[0, :, 1].tolist() == [0, 1, 255]


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_16_bits_that_hold_12_are_refused_and_full_ones_are_not(channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (6, 5, channels), dtype=np.uint16)
    if channels in (2, 4):
        values[..., -1] = 65_535
    with pytest.raises(ImageError, match="stores 16 bits per channel, but its values lie below 4,096"):
        decode(sixteen_bits(values))
    values[..., : channels - 1 + channels % 2] *= 16
    colours = (values >> 8).astype(np.uint8)[..., : channels - 1 + channels % 2]
    np.testing.assert_array_equal(pixels(sixteen_bits(values)), np.broadcast_to(colours, (6, 5, 3)))


def test_black_is_black_in_any_number_of_bits() -> None:
    assert not pixels(sixteen_bits(np.zeros((2, 2, 3), dtype=np.uint16))).any()
    assert not pixels(encoded(Image.fromarray(np.zeros((2, 2), dtype=np.uint16)))).any()


def test_12_bits_in_a_pgm_are_scaled_as_its_header_says() -> None:
    values = np.array([0, 16, 2048, 4095], dtype=">u2")
    assert pixels(b"P5 4 1 4095\n" + values.tobytes())[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_everywhere_is_refused(mode: str) -> None:
    image = Image.new(mode, (4, 4), {"RGBA": (90, 10, 20, 0), "LA": (90, 0), "P": 0, "RGB": (9, 8, 7)}[mode])
    options: dict[str, object] = {"P": {"transparency": 0}, "RGB": {"transparency": (9, 8, 7)}}.get(mode, {})  # type: ignore[assignment]
    with pytest.raises(ImageError, match=r"fully transparent \(its highest alpha is 0 of 255\).*without the alpha channel"):
        decode(encoded(image, **options))


@pytest.mark.parametrize("image_format", ["PPM", "JPEG2000"])
def test_netpbm_and_jpeg_2000_keep_every_pixel(image_format: str) -> None:
    np.testing.assert_array_equal(pixels(encoded(photograph(), image_format)), np.asarray(photograph()))


def test_limits_are_the_callers() -> None:
    data = encoded(photograph())
    with pytest.raises(ImageError, match=f"has {len(data)} bytes: expected at most 10;"):
        decode(data, ImageLimits(max_bytes=10))
    with pytest.raises(ImageError, match="claims 40 x 30 pixels: expected at most 1,199"):
        decode(data, ImageLimits(max_pixels=1199))
    assert decode(data, ImageLimits(max_bytes=len(data), max_pixels=1200)).size == (40, 30)


def test_read_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ImageError, match=r"text\.jpg: 8 bytes are not an image"):
        read(tmp_path / "text.jpg")
    with pytest.raises(NotFoundError, match=r"absent\.jpg: No such file"):
        read(tmp_path / "absent.jpg")


def test_find_searches_folders_and_keeps_the_order_of_files(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/1.jpg", "b/deep/0.webp", "b/notes.txt", "a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find([tmp_path / "b", tmp_path / "a.jpg"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["b/1.jpg", "b/2.PNG", "b/deep/0.webp", "a.jpg"]
    with pytest.raises(NotFoundError, match="no such file or folder"):
        find([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match=r"empty: no image in this folder$"):
        find([tmp_path / "empty"])


def test_to_rgb_is_what_decode_does_after_reading() -> None:
    image = Image.new("LA", (2, 1), (50, 100))
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), pixels(encoded(image)))


ZERO_PROFILE = b"icc\x00\x00" + zlib.compress(bytes(4 << 20))
LARGE_TEXT = b"Comment\x00\x00" + zlib.compress(b"text " * 500_000)
LARGE_UNICODE = b"Comment\x00\x01\x00\x00\x00" + zlib.compress(b"text " * 500_000)


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param(png_chunk(b"iCCP", ZERO_PROFILE), id="profile"),
        pytest.param(png_chunk(b"zTXt", LARGE_TEXT), id="compressed text"),
        pytest.param(png_chunk(b"iTXt", LARGE_UNICODE), id="compressed unicode"),
        pytest.param(png_chunk(b"tEXt", b"Comment\x00" + b"text " * 500_000), id="text"),
        pytest.param(png_chunk(b"zTXt", LARGE_TEXT) * 100, id="100 texts"),
    ],
)
def test_large_metadata_is_no_reason_to_refuse_a_png(chunks: bytes) -> None:
    image = photograph()
    np.testing.assert_array_equal(np.asarray(decode(png_with(chunks, image))), np.asarray(image))


def test_many_texts_of_a_png_are_not_all_expanded() -> None:
    body = b"XML:com.adobe.xmp\x00\x01\x00\x00\x00" + zlib.compress(bytes(1_000_000), 9)
    chunk = png_chunk(b"iTXt", body)
    data = encoded(Image.new("RGB", (8, 8), "red"))
    began = time.process_time()
    assert pixels(data[:33] + chunk * 2000 + data[33:])[0, 0].tolist() == [255, 0, 0]
    assert time.process_time() - began < 1


@pytest.mark.parametrize("compressed", [False, True])
def test_a_png_keeps_the_orientation_of_its_xmp(compressed: bool) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="3"/></x:xmpmeta>' + bytes(range(32, 127)) * 40
    body = b"XML:com.adobe.xmp\x00" + (b"\x01\x00\x00\x00" + zlib.compress(xmp) if compressed else b"\x00\x00\x00\x00" + xmp)
    image = photograph()
    turned = decode(png_with(png_chunk(b"zTXt", LARGE_TEXT) + png_chunk(b"iTXt", body), image))
    np.testing.assert_array_equal(np.asarray(turned), np.asarray(image)[::-1, ::-1])


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_jpeg_without_its_end_is_decoded_if_all_pixels_are_there(progressive: bool, subsampling: int) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8))
    data = encoded(noise, "JPEG", progressive=progressive, subsampling=subsampling)
    expected = np.asarray(decode(data))
    np.testing.assert_array_equal(np.asarray(decode(data[:-2])), expected)
    for missing in [*range(4, 60), *range(100, len(data) // 2, 97)]:
        with pytest.raises(ImageError, match="truncated"):
            decode(data[:-missing])


def test_an_avif_is_held_to_the_pixels_that_it_holds() -> None:
    with pytest.raises(ImageError, match="claims 64 x 64 pixels and holds coded images of 360,000 pixels"):
        decode(lying_avif(64, 600))
    assert decode(lying_avif(600, 600)).size == (600, 600)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_undone_as_pillow_does_it(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photograph(), "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(np.asarray(decode(data)), np.asarray(expected))


@pytest.mark.parametrize(
    ("image_format", "options", "pixel_bytes"),
    [("JPEG", {}, 4), ("JPEG", {"progressive": True}, 12), ("PNG", {}, 4), ("WEBP", {}, 20)],
)
def test_memory_is_estimated_from_the_header(image_format: str, options: dict[str, Any], pixel_bytes: int) -> None:
    data = encoded(photograph(), image_format, **options)
    image = Image.open(io.BytesIO(data))
    assert decoding_bytes(image, data) == pixel_bytes * image.width * image.height
