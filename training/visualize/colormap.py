"""Colour maps: a perceptually uniform ramp for layer maps, and a scale centred on zero for kernels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tlcli.contract.images.heatmap import ByteArray, FloatArray, to_unit

FLAT = (218, 218, 218)
"""Colour of flat maps, which would otherwise be drawn in the colour of the lowest value."""

_ROUNDING = 1e-6
"""Assumed relative rounding error of float32 sums."""

_LIGHTNESS = (0.21, 0.95)
_CHROMA = (0.10, 0.115, 0.092, 0.128, 0.17)
_HUE = (308.0, 276.0, 216.0, 156.0, 108.0)
"""Hues in degrees: violet, blue, teal, green and yellow. Like the chroma values, they are evenly spaced along the ramp."""

# OKLab to linear sRGB (B. Ottosson 2020, https://bottosson.github.io/posts/oklab/).
_TO_CONE = np.array([[1.0, 0.3963377774, 0.2158037573], [1.0, -0.1055613458, -0.0638541728], [1.0, -0.0894841775, -1.2914855480]])
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def is_flat(values: FloatArray, magnitude: float | None = None) -> bool:
    """Return True if a map `[h, w]` cannot be scaled because it is constant up to rounding errors, or not finite.

    Args:
        values: map to check, `[h, w]`.
        magnitude: magnitude of the values that the map was computed from, which determines the rounding error; None uses the magnitude
            of the map itself.
    """
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        return True
    return high - low <= _ROUNDING * (max(abs(low), abs(high)) if magnitude is None else magnitude)


def color_map(values: FloatArray) -> ByteArray:
    """Convert a map `[h, w]` to RGB `[h, w, 3]`, scaled to its own range. Colours range from dark violet (lowest) to yellow (highest).

    A flat map is drawn in grey; see `FLAT`.
    """
    if is_flat(values):
        return np.full((*values.shape, 3), FLAT, np.uint8)
    colors: ByteArray = RAMP[np.rint(255 * to_unit(values)).astype(np.uint8)]
    return colors


def about_zero(weights: FloatArray) -> ByteArray:
    """Convert weights of any shape to bytes, scaled by their largest magnitude. Zero maps to 128, the middle grey."""
    largest = float(np.abs(weights).max(initial=0.0))
    if not (np.isfinite(largest) and largest > 0):
        return np.full(weights.shape, 128, np.uint8)
    return np.rint(128 + 127 * (weights.astype(np.float64) / largest)).astype(np.uint8)


def _ramp() -> ByteArray:
    """Return 256 RGB colours `[256, 3]` whose OKLab lightness rises in equal steps, so that equal differences look equal."""
    position = np.linspace(0, 1, 256)
    knots = np.linspace(0, 1, len(_HUE))
    chroma, hue = np.interp(position, knots, _CHROMA), np.radians(np.interp(position, knots, _HUE))
    lab = np.stack([np.interp(position, (0, 1), _LIGHTNESS), chroma * np.cos(hue), chroma * np.sin(hue)], -1)
    linear: npt.NDArray[np.float64] = np.clip((lab @ _TO_CONE.T) ** 3 @ _TO_RGB.T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    colors: ByteArray = np.rint(255 * encoded).astype(np.uint8)
    return colors


RAMP = _ramp()
