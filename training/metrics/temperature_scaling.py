"""Temperature scaling: one number that brings a network's scores nearer to how often it is right, and leaves its answers as they are.

Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599, section 4.2: `softmax(z / T)`.
"""

from __future__ import annotations

from scipy.optimize import brentq
from torch import Tensor

LEAST, MOST = 0.1, 100.0
"""Bounds of what is fitted: logits times ten, logits over a hundred."""


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T between `LEAST` and `MOST` for which `softmax(logits / T)` has the least negative log-likelihood; computed in float64.

    In b = 1 / T the mean loss, `logsumexp(b z) - b z_y`, is convex: its slope, `sum_j p_j (z_j - z_y)`, rises with b, and T is where
    it is zero. Where it is zero nowhere between the bounds, T is a bound: `LEAST` if every answer is right, so that to be surer
    would always be better, and `MOST` if the logits are worth less than a guess.

    Args:
        logits: `[n, C]`, of images that the network was not trained on; n > 0.
        labels: int64 `[n]`.
    """
    z = logits.double()
    ahead = z - z.gather(1, labels[:, None])

    def slope(inverse: float) -> float:
        return float(((inverse * z).softmax(1) * ahead).sum(1).mean())

    if slope(1 / LEAST) <= 0:
        return LEAST
    if slope(1 / MOST) >= 0:
        return MOST
    return 1 / float(brentq(slope, 1 / MOST, 1 / LEAST))
