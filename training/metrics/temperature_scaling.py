"""Temperature scaling: one parameter that calibrates a network's scores without changing its predictions.

Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599, section 4.2: `softmax(z / T)`.
"""

from __future__ import annotations

from scipy.optimize import brentq
from torch import Tensor

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.1, 100.0
"""Bounds of the fitted temperature: logits multiplied by ten, and logits divided by a hundred."""


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T that minimizes the negative log-likelihood of `softmax(logits / T)`, computed in float64.

    The mean loss `logsumexp(b z) - b z_y` is convex in b = 1 / T: its slope `sum_j p_j (z_j - z_y)` rises with b, and T is the root
    of the slope. Without a root between the bounds, T is a bound: `MIN_TEMPERATURE` if every prediction is correct, so that more
    confidence always lowers the loss, and `MAX_TEMPERATURE` if the logits are worse than a guess.

    Args:
        logits: `[n, C]`, of images that the network was not trained on; n > 0.
        labels: int64 `[n]`.
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
