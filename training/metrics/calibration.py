"""Calibration of a network's scores: in a calibrated network, 80 % of the predictions with 80 % confidence are correct."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

BINS = 15
"""Number of bins used by Guo et al. 2017."""


class Bin(BaseModel):
    """Bin of predictions with a score in (low, high].

    confidence: mean score; None for an empty bin. accuracy: fraction of correct predictions; None for an empty bin.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


class Calibration(BaseModel):
    """Calibration of a set of predictions.

    ece: expected calibration error in [0, 1]: mean absolute difference of accuracy and confidence, weighted by predictions per bin.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ece: float
    bins: tuple[Bin, ...]


def calibration(confidences: npt.NDArray[np.floating], right: npt.NDArray[np.bool_], bins: int = BINS) -> Calibration:
    """Compute the expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3).

    Args:
        confidences: score of the predicted class for each image, `[n]`, in [0, 1].
        right: True for each correct prediction, `[n]`.
        bins: number of equal-width bins.
    """
    values = confidences.astype(np.float64)
    indices = np.clip(np.ceil(values * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(indices, minlength=bins)
    confidence = np.bincount(indices, weights=values, minlength=bins) / np.maximum(counts, 1)
    accuracy = np.bincount(indices, weights=right, minlength=bins) / np.maximum(counts, 1)
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
