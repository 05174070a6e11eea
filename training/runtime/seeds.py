"""Seeds made of numbers: what is drawn depends on what it is for, not on what was drawn before."""

from __future__ import annotations

import numpy as np


def seed_of(*numbers: int) -> int:
    """One seed of 64 bits from several numbers, as unlike as possible for numbers that are near each other."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
