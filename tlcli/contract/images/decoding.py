"""Decoding of image files to RGB, shared by training, export, `predict` and the server."""

from __future__ import annotations

import io
import stat
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from tlcli.contract.errors import ImageError, NotFoundError, TlcliError, first_line
from tlcli.contract.files.atomic_file import read_bounded
from tlcli.contract.files.display_name import printable
from tlcli.contract.images import find_images, heif
from tlcli.contract.images.avif_size import coded_pixels
from tlcli.contract.images.find_images import SUFFIXES
from tlcli.contract.images.repair import with_end, without_metadata
from tlcli.contract.images.structure import jpeg_keeps_coefficients

__all__ = ["DEFAULT_LIMITS", "FORMATS", "SUFFIXES", "ImageLimits", "decode", "find", "read", "to_rgb"]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000", *(("HEIF",) if find_images.HEIF_READ else ()))
"""Pillow decoders to try. Pillow's other decoders never read untrusted data. MPO, which some cameras write, is opened by the JPEG decoder
and not listed here, because every format after it would then fail."""

find = find_images.find
"""Search files and folders for images; see `tlcli.contract.images.find_images.find`."""

_NEAR_BLACK_16 = 4096
"""Upper bound (exclusive) of unscaled 12-bit values. A 16-bit image that contains only smaller values would be decoded near black."""

_NEAR_CLEAR = 4
"""Minimum visible 8-bit alpha value. An image that contains only smaller alpha values is invisible."""

_EXIF_ORIENTATION = 0x0112

# This module performs its own checks for what Pillow warns about, such as size and odd metadata. The filters are set once, because
# `catch_warnings` is not thread-safe.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\..*")


@dataclass(frozen=True)
class ImageLimits:
    """Limits above which an image is rejected.

    max_bytes: size of the encoded image.
    max_pixels: width times height, read from the header before anything is decoded.
    """

    max_bytes: int = 32 * 1024 * 1024
    max_pixels: int = 50_000_000


DEFAULT_LIMITS = ImageLimits()

OnOpened = Callable[[Image.Image], None]
"""Callback that receives an opened image before its pixels are decoded, when only size and mode are known. An exception from it aborts the
decoding."""


def decode(data: bytes, limits: ImageLimits = DEFAULT_LIMITS, on_opened: OnOpened = lambda image: None) -> Image.Image:
    """Decode an image to RGB, as an image viewer would show it.

    The function takes the first frame of an animation, applies the EXIF orientation, composites transparency on white, scales 16-bit
    greyscale values to 8 bits, and converts every colour model to RGB.

    Args:
        data: encoded JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, PPM or JPEG 2000 image, or HEIC if `pillow-heif` is installed.
        limits: limits above which the image is rejected.
        on_opened: callback for the opened image; see `OnOpened`.

    Returns:
        A loaded Pillow image of mode "RGB", at least 1x1 pixels.

    Raises:
        ImageError: the data are empty, truncated or not an image, or the image exceeds a limit, has a mode without colours, is
            fully transparent, or has values of unknown range.
        Exception: any exception from `on_opened`.
    """
    if not data:
        raise ImageError("the image is empty (0 bytes): expected an encoded image (JPEG, PNG, ...)")
    if len(data) > limits.max_bytes:
        raise ImageError(f"the image has {len(data):,} bytes: expected at most {limits.max_bytes:,}; use a smaller image")
    try:
        image = _load(without_metadata(data), limits, on_opened)
        return to_rgb(image)
    except TlcliError:
        raise
    except UnidentifiedImageError as error:
        if heif.is_heif(data[:64]):
            raise ImageError(heif.missing("the image is a HEIC image")) from error
        raise ImageError(
            f"{len(data):,} bytes are not an image (they start with {data[:8]!r}): expected one of {', '.join(FORMATS)}"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image claims more than {limits.max_pixels:,} pixels: use a smaller image") from error
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
        # Exceptions that Pillow's decoders raise on broken data, by its documentation and by fuzzing.
        raise ImageError(f"the image cannot be decoded: {first_line(error)}") from error


def _load(data: bytes, limits: ImageLimits, on_opened: OnOpened) -> Image.Image:
    """Open an image and decode its pixels. A JPEG whose only fault is a missing end marker is accepted."""
    image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_size(image.size, limits)
    if image.format == "AVIF":
        _check_coded(data, image, limits)
    on_opened(image)
    deep = _stores_16_bits(image)
    try:
        image.load()
    except OSError:
        if (whole := with_end(data)) is None:
            raise
        image = whole
    if deep:
        _require_full_range(image)
    _check_size(image.size, limits)  # the decoded size may differ from the header's
    return image


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise ImageError(f"the image claims {width:,} x {height:,} pixels: expected at most {limits.max_pixels:,}; use a smaller image")


def _check_coded(data: bytes, image: Image.Image, limits: ImageLimits) -> None:
    """Check the sizes of an AVIF file's coded images.

    The decoder processes the coded images at their full size before it scales them to the size in the header.
    """
    coded = coded_pixels(data)
    if max(coded, default=0) > _CODED_SHARE * image.width * image.height + _CODED_PADDING or sum(coded) > _CODED_SHARE * limits.max_pixels:
        raise ImageError(
            f"the image claims {image.width:,} x {image.height:,} pixels and holds coded images of {sum(coded):,} pixels: expected at most"
            f" {limits.max_pixels:,}; save the image again"
        )


_CODED_SHARE, _CODED_PADDING = 4, 128 * 128
"""Tolerances for coded images, which are padded to whole blocks and may include an alpha channel, a thumbnail or a gain map."""

_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "LA": 4, "PA": 4, "RGB": 4, "RGBA": 4, "CMYK": 4, "YCbCr": 4, "LAB": 4, "F": 4, "I": 4}
"""Bytes per pixel of Pillow's modes. Modes that are not listed have 2 bytes."""

_COEFFICIENT_BYTES = 8
_DECODER_BYTES = {"WEBP": 16, "AVIF": 16, "HEIF": 16, "JPEG2000": 16, "TIFF": 8, "GIF": 4}
"""Additional bytes per pixel that decoders allocate besides the image, for canvases, planes and strips."""


def decoding_bytes(image: Image.Image, data: bytes) -> int:
    """Estimate an upper bound of the memory in bytes that `load` and `to_rgb` need.

    Args:
        image: opened image whose pixels have not been decoded.
        data: encoded image.
    """
    own, decoder = _MODE_BYTES.get(image.mode, 2), _DECODER_BYTES.get(image.format or "", 0)
    if data.startswith(b"\xff\xd8") and jpeg_keeps_coefficients(data):
        decoder = _COEFFICIENT_BYTES
    if image.has_transparency_data:
        converted = 16  # RGBA, white, both composed, RGB
    elif image.mode.startswith("I"):
        converted = 24  # 64-bit integers as an intermediate step
    else:
        converted = 0 if image.mode == "RGB" else 4
    return image.width * image.height * (own + max(decoder, converted))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded Pillow image to RGB, with EXIF orientation and transparency applied, as `decode` does.

    Use this function for images that were not read from a file.

    Raises:
        ImageError: the image has a mode without colours, is fully transparent, or has values of unknown range.
    """
    return _to_rgb(_upright(image))


def read(path: str | Path, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Read and decode an image file.

    Raises:
        NotFoundError: the file does not exist.
        ImageError: see `decode` and `read_encoded`; the message begins with the path.
    """
    data = read_encoded(path, limits.max_bytes)
    try:
        return decode(data, limits)
    except ImageError as error:
        raise ImageError(f"{printable(str(path))}: {error}") from error


def read_encoded(path: str | Path, max_bytes: int) -> bytes:
    """Read the bytes of an image file.

    Raises:
        NotFoundError: the file does not exist.
        ImageError: the file cannot be read, is a folder, a device or a pipe without a writer, or has more than `max_bytes`.
    """
    shown = printable(str(path))
    try:
        status = Path(path).stat()
        if stat.S_ISREG(status.st_mode) and status.st_size > max_bytes:
            raise ImageError(f"{shown}: the image has {status.st_size:,} bytes: expected at most {max_bytes:,}; use a smaller image")
        data = read_bounded(path, max_bytes) if _is_readable(status.st_mode) else b""
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"{shown}: {error.strerror}") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{shown}: {getattr(error, 'strerror', None) or error}") from error
    if not data and not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{shown}: {find_images.kind_of(status.st_mode)}: expected an image file")
    if len(data) > max_bytes:
        raise ImageError(f"{shown}: the image has more than {max_bytes:,} bytes: use a smaller image")
    return data


def _is_readable(mode: int) -> bool:
    """Return True for the mode of a regular file, pipe or folder. Folders are included so that reading them raises the system's error."""
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISDIR(mode)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transpose operation for each EXIF orientation. `ImageOps.exif_transpose` is not used, because it also rewrites all EXIF data, which
takes unbounded time."""


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, ZeroDivisionError, struct.error):
        return image  # the image itself may be fine when its EXIF data are unreadable
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = image.info
    return turned


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _from_integers(image)
    if image.mode == "F":
        raise ImageError("the image holds floating-point values, which have no agreed range: save it with 8 or 16 bits per channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        _require_visible(image)
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _from_integers(image: Image.Image) -> Image.Image:
    """Convert 16-bit greyscale to RGB (Pillow's modes I;16*, and I, which stores it in 32 bits). `convert` alone would clip at 255."""
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 0xFFFF:
        raise ImageError(f"the image holds integers from {low} to {high}: expected 8 or 16 bits per channel")
    if 0 < high < _NEAR_BLACK_16:
        raise ImageError(
            f"the image holds values from {low:,} to {high:,} where 65,535 is white, so it would be decoded near black:"
            " scale them (12-bit data: times 16), or save it with 8 bits per channel"
        )
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")


def _stores_16_bits(image: Image.Image) -> bool:
    """Return True if an opened image has 16-bit colour channels, which Pillow reduces to their upper 8 bits. Call this before loading."""
    return (
        image.format in ("PNG", "TIFF") and image.mode in ("RGB", "RGBA", "RGBX", "LA", "CMYK") and ";16" in str(getattr(image, "tile", ""))
    )


def _require_full_range(image: Image.Image) -> None:
    """Reject a 16-bit colour image that contains unscaled values of 12 bits or fewer, as `_from_integers` does for greyscale.

    Raises:
        ImageError: all colour values fit in 12 bits.
    """
    colours = [band for band, name in zip(image.split(), image.getbands(), strict=True) if name not in ("A", "X")]
    high = max(int(np.asarray(band).max()) for band in colours)
    if 0 < high < _NEAR_BLACK_16 >> 8:
        raise ImageError(
            f"the image stores 16 bits per channel, but its values lie below {(high + 1) << 8:,}: it would be decoded near black;"
            " scale them to 65,535, or save it with 8 bits per channel"
        )


def _require_visible(image: Image.Image) -> None:
    """Reject an RGBA image that is fully transparent.

    Raises:
        ImageError: the image has no visible pixel.
    """
    highest = int(np.asarray(image.getchannel("A")).max())
    if highest < _NEAR_CLEAR:
        raise ImageError(f"the image is fully transparent (its highest alpha is {highest} of 255): save it without the alpha channel")
