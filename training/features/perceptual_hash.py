"""Perceptual hash of an image: the signs of its low frequencies, compared with mirrored and slightly cropped variants."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image

THUMBNAIL = 64
"""Height and width of the grey thumbnail that hashes are computed from."""

_GRID = 32
_FREQUENCIES = 8
_SHARES = (0.95, 0.9)
"""Fractions of the height and width that the cropped variants keep: crops by 5 % in total, and by 5 % on each side."""
_PLACES = ((0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))

BITS = _FREQUENCIES**2 - 1
"""Number of bits of a hash. The mean of the image is left out."""

Thumbnail = npt.NDArray[np.uint8]


def thumbnail(image: Image.Image) -> Thumbnail:
    """Return an image in grey, squashed to 64 by 64 pixels, uint8 `[64, 64]`."""
    return np.asarray(image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def hash_variants(image: Thumbnail) -> npt.NDArray[np.bool_]:
    """Return the hash of a thumbnail, followed by those of its mirror image and of its crops, bool `[22, 63]`.

    A hash tells which of the 63 lowest frequencies of the discrete cosine transform, without the mean, are above their median
    (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", section 3.2.1).
    """
    picture = Image.fromarray(image)
    boxes = [(0.0, 0.0, float(THUMBNAIL), float(THUMBNAIL))]
    for side in (share * THUMBNAIL for share in _SHARES):
        for down, right in _PLACES:
            left, top = right * (THUMBNAIL - side), down * (THUMBNAIL - side)
            boxes.append((left, top, left + side, top + side))
    grids = np.stack([np.asarray(picture.resize((_GRID, _GRID), Image.Resampling.BILINEAR, box), dtype=np.float64) for box in boxes])
    basis = _cosines()
    low = basis @ grids @ basis.T
    mirrored = low * (-1.0) ** np.arange(_FREQUENCIES)  # mirroring changes the sign of the odd horizontal frequencies
    both = np.stack([low, mirrored], axis=1).reshape(-1, _FREQUENCIES**2)[:, 1:]
    return np.asarray(both > np.median(both, axis=1, keepdims=True))


def hash_distance(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> int:
    """Return the smallest number of differing bits between the hash of one image and the variants of the other, 0 to 63.

    Args:
        first, second: `hash_variants` of two images.
    """
    return int(min((first[0] != second).sum(axis=1).min(), (second[0] != first).sum(axis=1).min()))


@cache
def _cosines() -> npt.NDArray[np.float64]:
    """Return the lowest basis vectors of the discrete cosine transform (type II, orthonormal), float64 `[8, 32]`."""
    frequency, place = np.arange(_FREQUENCIES)[:, None], np.arange(_GRID)[None]
    basis = np.sqrt(2 / _GRID) * np.cos(np.pi * frequency * (2 * place + 1) / (2 * _GRID))
    basis[0] /= np.sqrt(2)
    return np.asarray(basis)
