"""Seeds derived from numbers: a random value depends on its purpose, not on the values generated before it."""

from __future__ import annotations

import numpy as np


def seed_of(*numbers: int) -> int:
    """Return a 64-bit seed derived from several numbers; similar numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
