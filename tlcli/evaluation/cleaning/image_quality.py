"""Measures of an image that need no network: brightness, sharpness and size."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

DARK = 0.2
"""Brightness below which an image is dark."""

SOFT = -3.5
"""Robust z-score of the logarithm of the sharpness below which an image is blurred, relative to the other images."""

ODD = 5.0
"""Robust z-score of the logarithm of the area or of the aspect ratio beyond which a size is odd."""

FAR = 2.5
"""Robust z-score of the distance to the nearest neighbours beyond which an image is an outlier."""

_SIDE = 256
_BRIGHT_SHARE = 0.99
_NORMAL = 1.4826
"""Ratio of the standard deviation of a normal distribution to its median absolute deviation."""

_MIN_SPREAD = 0.1
_MIN_SPREAD_OF_AREAS, _MIN_SPREAD_OF_ASPECTS = 0.6, 0.2
"""Smallest standard deviations of the logarithms, so that areas within a factor of 20 and aspect ratios within 2.7 are not odd."""


class Quality(NamedTuple):
    """Measures of an image.

    brightness: 99th percentile of the luminance, in [0, 1]. sharpness: variance of the Laplacian relative to the variance of the luminance.
    width, height: size in pixels.
    """

    brightness: float
    sharpness: float
    width: int
    height: int


def measure_quality(image: Image.Image) -> Quality:
    """Measure an RGB image. Images larger than 256 pixels are reduced first, so that sharpness does not depend on the resolution."""
    grey = image.convert("L")
    counts = np.cumsum(grey.histogram())
    brightness = int(np.searchsorted(counts, _BRIGHT_SHARE * counts[-1])) / 255
    grey.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    return Quality(brightness, _sharpness(np.asarray(grey, dtype=np.float32)), image.width, image.height)


def _sharpness(grey: npt.NDArray[np.float32]) -> float:
    """Return the variance of the Laplacian divided by the variance of the image `[H, W]`; 1 for an image without any detail."""
    variance = float(grey.var())
    if min(grey.shape) < 3 or variance < 1:
        return 1.0
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    return float(laplacian.var()) / variance


def robust_z(values: npt.NDArray[np.float64], min_spread: float = _MIN_SPREAD) -> npt.NDArray[np.float64]:
    """Return the distance of each value from the median, in robust standard deviations (1.4826 median absolute deviations).

    Args:
        values: values, float64 `[n]`.
        min_spread: smallest standard deviation, for values that are nearly all the same.
    """
    centred = values - np.median(values)
    return np.asarray(centred / max(_NORMAL * float(np.median(np.abs(centred))), min_spread))


def dark(measures: list[Quality]) -> npt.NDArray[np.bool_]:
    """Return True for dark images, bool `[n]`."""
    return np.array([measure.brightness < DARK for measure in measures])


def blurred(measures: list[Quality]) -> npt.NDArray[np.bool_]:
    """Return True for images that are much less sharp than the others, bool `[n]`."""
    return robust_z(np.log(np.maximum([measure.sharpness for measure in measures], 1e-9))) < SOFT


def oddly_sized(measures: list[Quality]) -> npt.NDArray[np.bool_]:
    """Return True for images whose area or aspect ratio is far from that of the others, bool `[n]`."""
    width = np.log([measure.width for measure in measures])
    height = np.log([measure.height for measure in measures])
    areas, aspects = robust_z(width + height, _MIN_SPREAD_OF_AREAS), robust_z(width - height, _MIN_SPREAD_OF_ASPECTS)
    return np.asarray((np.abs(areas) > ODD) | (np.abs(aspects) > ODD))


def outlying(distances: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return True for images that are much farther from their nearest neighbours than the others, bool `[n]`.

    Args:
        distances: mean cosine distance of each image to its nearest neighbours, float64 `[n]`.
    """
    return robust_z(distances, min_spread=0.02) > FAR
