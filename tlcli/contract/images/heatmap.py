"""Drawing of maps as heat maps and overlays. A map is scaled to [0, 1], upsampled, coloured, and blended with the image."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from tlcli.contract.images.preprocessing import Box

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]

MAX_SIDE = 1024
"""Maximum length in pixels of an overlay's longer side; larger images are scaled down."""

_BAND_VALUES = 1 << 16
"""Number of values coloured at a time, to limit memory: the temporary arrays take 100 times the size of the values."""


def to_unit(values: FloatArray) -> FloatArray:
    """Scale each map in `[..., h, w]` to [0, 1] by its own minimum and maximum. Constant and non-finite maps become zeros."""
    low = values.min((-2, -1), keepdims=True).astype(np.float64)
    extent = values.max((-2, -1), keepdims=True) - low
    usable = np.isfinite(extent) & (extent > 0)
    with np.errstate(invalid="ignore"):
        return np.where(usable, (values - low) / np.where(usable, extent, 1), 0).astype(np.float32)


def enlarge(values: FloatArray, width: int, height: int) -> FloatArray:
    """Resize a map `[h, w]` to `[height, width]` by bilinear interpolation between pixel centres (`align_corners=False`)."""
    return np.asarray(Image.fromarray(values, mode="F").resize((width, height), Image.Resampling.BILINEAR))


def colorize(unit: FloatArray) -> ByteArray:
    """Convert values in [0, 1], `[h, w]`, to RGB `[h, w, 3]` with the "jet" colour map of the CAM papers: blue, cyan, yellow, red."""
    colors = np.empty((*unit.shape, 3), np.uint8)
    rows = max(1, _BAND_VALUES // max(1, unit.shape[-1]))
    for start in range(0, len(unit), rows):
        position = 4 * np.clip(unit[start : start + rows], 0, 1)[..., None] - np.array([3.0, 2.0, 1.0])
        colors[start : start + rows] = 255 * np.clip(1.5 - np.abs(position), 0, 1) + 0.5
    return colors


def heat_map(values: FloatArray, width: int, height: int) -> Image.Image:
    """Draw a raw map `[h, w]` as an RGB image of `width` x `height` pixels."""
    return Image.fromarray(colorize(enlarge(to_unit(values), width, height)))


def shrink(image: Image.Image, max_side: int = MAX_SIDE) -> tuple[Image.Image, float]:
    """Scale an image down to at most `max_side` pixels on its longer side, as `overlay` does.

    Returns:
        The image and its scale factor. A smaller image is returned unchanged, with a factor of 1.0.
    """
    scale = min(1.0, max_side / max(image.size))
    if scale < 1.0:
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BILINEAR)
    return image, scale


def overlay(image: Image.Image, values: FloatArray, box: Box, strength: float = 0.5, max_side: int = MAX_SIDE) -> Image.Image:
    """Blend a raw map `[h, w]` with the part of the image that the network saw.

    Args:
        image: RGB image as returned by `tlcli.contract.images.decoding.decode`.
        values: raw map.
        box: part of the image that the network saw, from `Preprocessing.visible_box(*image.size)`; the rest of the image is dimmed.
        strength: weight of the map's colours in the blend, from 0 to 1.
        max_side: maximum length of the longer side in pixels; larger images are scaled down.

    Returns:
        An RGB image of the same size as the input image, or of its scaled size.
    """
    image, scale = shrink(image, max_side)
    left, top, right, bottom = (round(edge * scale) for edge in box)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    mixed = Image.blend(image, Image.new("RGB", image.size), 0.5)
    inside = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
    heat = heat_map(values, right - left, bottom - top).crop((inside[0] - left, inside[1] - top, inside[2] - left, inside[3] - top))
    mixed.paste(Image.blend(image.crop(inside), heat, strength), inside[:2])
    return mixed


def encode(image: Image.Image, image_format: Literal["PNG", "JPEG"] = "PNG") -> bytes:
    """Encode an image as PNG or JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, quality=90) if image_format == "JPEG" else image.save(buffer, image_format, compress_level=3)
    return buffer.getvalue()
