"""Which of many images to take, where some are enough."""

from __future__ import annotations


def evenly_spaced(available: int, most: int) -> list[int]:
    """Return up to `most` indices, evenly over all `available`, so that every class is among them."""
    count = min(available, most)
    return [index * available // count for index in range(count)]
