"""Temperature scaling, which calibrates a network's scores with a single parameter and does not change its predictions.

The scores are `softmax(z / T)` (Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599, section 4.2).
"""

from __future__ import annotations

from scipy.optimize import brentq
from torch import Tensor

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.1, 100.0
"""Bounds of the fitted temperature. Logits are at most multiplied by ten or divided by a hundred."""


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T that minimises the negative log-likelihood of `softmax(logits / T)`, computed in float64.

    The mean loss `logsumexp(b z) - b z_y` is convex in b = 1 / T. Its slope `sum_j p_j (z_j - z_y)` rises with b, and 1 / T is the root
    of the slope. If there is no root within the bounds, T is one of the bounds: `MIN_TEMPERATURE` if every prediction is correct, so
    that more confidence always lowers the loss, or `MAX_TEMPERATURE` if the logits are worse than uniform guessing.

    Args:
        logits: logits `[n, C]` of images that the network was not trained on, with n > 0.
        labels: class indices, int64 `[n]`.
    """
    z = logits.double()
    margins = z - z.gather(1, labels[:, None])

    def slope(inverse: float) -> float:
        return float(((inverse * z).softmax(1) * margins).sum(1).mean())

    if slope(1 / MIN_TEMPERATURE) <= 0:
        return MIN_TEMPERATURE
    if slope(1 / MAX_TEMPERATURE) >= 0:
        return MAX_TEMPERATURE
    return 1 / float(brentq(slope, 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE))
