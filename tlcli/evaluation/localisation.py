"""Localisation metrics: overlap of a map with the object. Both take the map and the object's region at the input's size."""

from __future__ import annotations

import numpy as np

from tlcli.evaluation.perturbation import Flags, Values

MARGIN = 15 / 224
"""Distance from the object at which a point still counts, relative to the input's shorter side: 15 pixels of 224, as in the paper."""


def points_at(values: Values, region: Flags, margin: float = MARGIN) -> bool:
    """Play the pointing game: return True if the map's maximum is on the object.

    Zhang et al. 2016, excitation backprop, arXiv:1608.00507. Of several equal maxima the one nearest to their centre counts. A constant
    map is a miss.

    Args:
        values: the map, `[H, W]`.
        region: the object, `[H, W]`, with at least one pixel.
        margin: distance from the object at which a point is still a hit, relative to the input's shorter side.
    """
    largest = values.max()
    if not largest > values.min():
        return False
    tied = np.argwhere(values == largest)
    point = tied[np.square(tied - tied.mean(0)).sum(1).argmin()]
    nearest = np.square(np.argwhere(region) - point).sum(1).min()
    return bool(nearest <= (margin * min(region.shape)) ** 2)


def energy_inside(values: Values, region: Flags) -> float:
    """Return the share of the map's energy on the object, the score of the energy-based pointing game.

    Wang et al. 2020, Score-CAM, arXiv:1910.01279, section 4.3.

    Args:
        values: the map, `[H, W]`, scaled to [0, 1] as in the paper. Negative values count as 0.
        region: the object, `[H, W]`.

    Returns:
        The share; 0 for a map without positive values.
    """
    positive = np.maximum(values, 0).astype(np.float64)
    total = float(positive.sum())
    return float(positive[region].sum()) / total if total > 0 else 0.0
