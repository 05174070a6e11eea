"""Does the map lie on the object? Both measures take the map at the input's size and where in the input the object is."""

from __future__ import annotations

import numpy as np

from tlcli.evaluation.perturbation import Flags, Values

MARGIN = 15 / 224
"""How far beside the object a point still counts, in sides of the input: 15 pixels of 224, as in the paper's protocol."""


def points_at(values: Values, region: Flags, margin: float = MARGIN) -> bool:
    """The pointing game (Zhang et al. 2016, excitation backprop, arXiv:1608.00507): the map's largest point lies on the object.

    Of several equally large points the one nearest to their middle counts. A constant map points at nothing.

    Args:
        values: `[H, W]`.
        region: where the object is, `[H, W]`, somewhere at least.
        margin: how far beside it a point is still a hit, in sides of the input, the shorter one.
    """
    largest = values.max()
    if not largest > values.min():
        return False
    tied = np.argwhere(values == largest)
    point = tied[np.square(tied - tied.mean(0)).sum(1).argmin()]
    nearest = np.square(np.argwhere(region) - point).sum(1).min()
    return bool(nearest <= (margin * min(region.shape)) ** 2)


def energy_inside(values: Values, region: Flags) -> float:
    """The energy-based pointing game (Wang et al. 2020, Score-CAM, arXiv:1910.01279, section 4.3): the share of the map on the object.

    Args:
        values: `[H, W]`, scaled to [0, 1] as in the paper; else negative values count as nothing. A map without a positive value
            has no share: 0.
        region: where the object is, `[H, W]`.
    """
    positive = np.maximum(values, 0).astype(np.float64)
    total = float(positive.sum())
    return float(positive[region].sum()) / total if total > 0 else 0.0
