"""Whether a network's scores can be taken at their word: of all answers given with 80 %, are 80 % right?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

BINS = 15
"""As in Guo et al. 2017."""


class Bin(BaseModel):
    """The answers whose score lies in (low, high]. confidence: their mean score. accuracy: the share of right ones. None without any."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


class Calibration(BaseModel):
    """ece: the expected calibration error, in [0, 1]: how far accuracy and confidence lie apart, weighted by the answers in each bin."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ece: float
    bins: tuple[Bin, ...]


def calibration(confidences: npt.NDArray[np.floating], right: npt.NDArray[np.bool_], bins: int = BINS) -> Calibration:
    """Guo et al. 2017, arXiv:1706.04599, eq. 3.

    Args:
        confidences: the first class's score of each answer, `[n]`, in [0, 1].
        right: whether it is right, `[n]`.
        bins: of equal width.
    """
    values = confidences.astype(np.float64)
    place = np.clip(np.ceil(values * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    confidence = np.bincount(place, weights=values, minlength=bins) / np.maximum(counts, 1)
    accuracy = np.bincount(place, weights=right, minlength=bins) / np.maximum(counts, 1)
    return Calibration(
        ece=float((counts * np.abs(accuracy - confidence)).sum() / max(1, counts.sum())),
        bins=tuple(
            Bin(
                low=number / bins,
                high=(number + 1) / bins,
                count=int(counts[number]),
                confidence=float(confidence[number]) if counts[number] else None,
                accuracy=float(accuracy[number]) if counts[number] else None,
            )
            for number in range(bins)
        ),
    )
