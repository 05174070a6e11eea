"""Which images are used, and which of them for validation: decided by the seed, a class at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Reader = Callable[[list[str]], set[str]]
"""Tries images by name and answers those that can be read."""


@dataclass
class Draw:
    """Images of one class that are drawn in the order `names` until `wanted` readable ones are found (None: all)."""

    names: Sequence[str]
    wanted: int | None
    tried: int = 0

    def __post_init__(self) -> None:
        self.readable: list[str] = []

    @property
    def unreadable(self) -> int:
        """How many of the images tried could not be read."""
        return self.tried - len(self.readable)

    def next_batch(self) -> list[str]:
        """The images to try next; none when there are enough or no more."""
        lacking = len(self.names) if self.wanted is None else self.wanted - len(self.readable)
        return list(self.names[self.tried : self.tried + lacking])

    def note(self, batch: Sequence[str], readable: set[str]) -> None:
        """`batch` has been tried; of it, `readable` can be used."""
        self.tried += len(batch)
        self.readable.extend(name for name in batch if name in readable)


def shuffled(names: Sequence[str], seed: int, key: str) -> list[str]:
    """`names` in an order that depends on `seed` and `key` alone, whatever else is shuffled.

    `key` tells classes apart, so that adding one leaves the choice of the others as it was.
    """
    words = np.frombuffer(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:16], dtype="<u4")
    order = np.random.default_rng([seed, *words.tolist()]).permutation(len(names))
    return [names[index] for index in order]


def read_all(draws: Iterable[Draw], reader: Reader) -> None:
    """Try images until every draw has what it wants or no image is left: broken ones are replaced by the next.

    Each round asks `reader` once for all draws together.
    """
    pending = list(draws)
    while True:
        batches = [(draw, batch) for draw in pending if (batch := draw.next_batch())]
        if not batches:
            return
        readable = reader([name for _, batch in batches for name in batch])
        for draw, batch in batches:
            draw.note(batch, readable)


def held_out(count: int, fraction: float, limit: int | None) -> int:
    """How many of a class's `count` images validate: `fraction` of them rounded, at least 1, at most `limit`, leaving 1 to train on."""
    return max(1, min(round(count * fraction), count - 1, limit or count))
