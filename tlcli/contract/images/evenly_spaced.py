"""Evenly spaced samples of a list of images."""

from __future__ import annotations


def evenly_spaced(available: int, most: int) -> list[int]:
    """Return up to `most` indices, spread evenly over all `available`, so that every class is represented."""
    count = min(available, most)
    return [index * available // count for index in range(count)]
