"""Maps that know nothing of the image, for what the others are to be compared with."""

from __future__ import annotations

import numpy as np

from tlcli.evaluation.perturbation import Values

RANDOM, CENTRE = "random", "centre"
BASELINES = (RANDOM, CENTRE)
"""Their names, beside those of the methods."""

_SPREAD = 0.25
"""The centre map's standard deviation, in sides of the input."""


def random_map(height: int, width: int, seed: int, number: int) -> Values:
    """Image `number`'s: uniform noise in [0, 1], of a map's own size, so that it is as smooth as one when enlarged."""
    return np.random.default_rng([seed, number, 1]).random((height, width), dtype=np.float32)


def centre_map(height: int, width: int) -> Values:
    """A Gaussian in the middle: photographers put things there, so a map must do better. At the input's size."""
    down = (np.arange(height) + 0.5) / height - 0.5
    across = (np.arange(width) + 0.5) / width - 0.5
    distance = np.square(down)[:, None] + np.square(across)
    return np.asarray(np.exp(-distance / (2 * _SPREAD**2)), dtype=np.float32)
