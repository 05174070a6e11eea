"""Selection of evenly spaced images from a list."""

from __future__ import annotations


def evenly_spaced(available: int, most: int) -> list[int]:
    """Return up to `most` indices, evenly spaced over all `available` items, so that a list sorted by class is sampled in every class."""
    count = min(available, most)
    return [index * available // count for index in range(count)]
