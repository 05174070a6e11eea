"""Localisation metrics that measure the overlap of a map with the object. Both take the map and the object's mask at the input size."""

from __future__ import annotations

import numpy as np

from tlcli.evaluation.perturbation import Flags, Values

MARGIN = 15 / 224
"""Distance from the object within which a point still counts as a hit, relative to the input's shorter side. As in the paper, it is 15
pixels for an input of 224."""


def points_at(values: Values, region: Flags, margin: float = MARGIN) -> bool:
    """Play the pointing game: return True if the map's maximum is on the object.

    See Zhang et al. 2016, excitation backprop, arXiv:1608.00507. If several positions share the maximum, the one nearest to their centroid
    counts. A constant map is a miss.

    Args:
        values: map, `[H, W]`.
        region: mask of the object, `[H, W]`, with at least one pixel.
        margin: distance from the object within which a point is still a hit, relative to the input's shorter side.
    """
    largest = values.max()
    if not largest > values.min():
        return False
    tied = np.argwhere(values == largest)
    point = tied[np.square(tied - tied.mean(0)).sum(1).argmin()]
    nearest = np.square(np.argwhere(region) - point).sum(1).min()
    return bool(nearest <= (margin * min(region.shape)) ** 2)


def energy_inside(values: Values, region: Flags) -> float:
    """Return the fraction of the map's energy on the object, which is the score of the energy-based pointing game.

    See Wang et al. 2020, Score-CAM, arXiv:1910.01279, section 4.3.

    Args:
        values: map, `[H, W]`, scaled to [0, 1] as in the paper. Negative values count as 0.
        region: mask of the object, `[H, W]`.

    Returns:
        The fraction; 0 for a map without positive values.
    """
    positive = np.maximum(values, 0).astype(np.float64)
    total = float(positive.sum())
    return float(positive[region].sum()) / total if total > 0 else 0.0
