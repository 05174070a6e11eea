"""Seeds derived from numbers, so that random values depend on their purpose and not on values generated earlier."""

from __future__ import annotations

import numpy as np


def seed_of(*numbers: int) -> int:
    """Return a 64-bit seed derived from several numbers. Similar numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
