"""Image-independent baseline maps for comparison with the methods' maps."""

from __future__ import annotations

import numpy as np

from tlcli.evaluation.perturbation import Values

RANDOM, CENTRE = "random", "centre"
BASELINES = (RANDOM, CENTRE)
"""Names of the baseline maps."""

_SPREAD = 0.25
"""Standard deviation of the centre map's Gaussian, relative to the input size."""


def random_map(height: int, width: int, seed: int, number: int) -> Values:
    """Return uniform noise in [0, 1] for image `number`.

    The noise has the size of an unscaled map, so that it is as smooth as a map when enlarged.
    """
    return np.random.default_rng([seed, number, 1]).random((height, width), dtype=np.float32)


def centre_map(height: int, width: int) -> Values:
    """Return a centred Gaussian at the input size.

    Photographers centre their subjects, so a useful map must score better than this baseline.
    """
    down = (np.arange(height) + 0.5) / height - 0.5
    across = (np.arange(width) + 0.5) / width - 0.5
    distance = np.square(down)[:, None] + np.square(across)
    return np.asarray(np.exp(-distance / (2 * _SPREAD**2)), dtype=np.float32)
