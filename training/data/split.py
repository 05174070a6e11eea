"""Stratified sampling and validation split of images, reproducible from the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Reader = Callable[[list[str]], set[str]]
"""Function that tries to read images by name and returns the names of the readable ones."""


@dataclass
class ClassSample:
    """Sample of the images of one class: the first `limit` readable images in the order of `names`, or all readable ones.

    names: shuffled names of all images of the class. limit: number of images to sample; None for all.
    tried: number of images tried so far. readable: names of the sampled images.
    """

    names: Sequence[str]
    limit: int | None
    tried: int = 0

    def __post_init__(self) -> None:
        self.readable: list[str] = []

    @property
    def unreadable(self) -> int:
        """Number of images that were tried but could not be read."""
        return self.tried - len(self.readable)

    def next_batch(self) -> list[str]:
        """Return the images to try next. The list is empty when the sample is complete or no images are left."""
        missing = len(self.names) if self.limit is None else self.limit - len(self.readable)
        return list(self.names[self.tried : self.tried + missing])

    def update(self, batch: Sequence[str], readable: set[str]) -> None:
        """Mark the images of `batch` as tried, and add those in `readable` to the sample."""
        self.tried += len(batch)
        self.readable.extend(name for name in batch if name in readable)


def shuffled(names: Sequence[str], seed: int, key: str) -> list[str]:
    """Return `names` in a random order that depends only on `seed` and `key`.

    Each class uses its own `key`, so that adding a class does not change the samples of the others.
    """
    words = np.frombuffer(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:16], dtype="<u4")
    order = np.random.default_rng([seed, *words.tolist()]).permutation(len(names))
    return [names[index] for index in order]


def read_all(samples: Iterable[ClassSample], reader: Reader) -> None:
    """Read images until every sample is complete or has no images left. Each unreadable image is replaced by the next one.

    Each round calls `reader` once for all samples.
    """
    pending = list(samples)
    while True:
        batches = [(sample, batch) for sample in pending if (batch := sample.next_batch())]
        if not batches:
            return
        readable = reader([name for _, batch in batches for name in batch])
        for sample, batch in batches:
            sample.update(batch, readable)


def validation_count(count: int, fraction: float, limit: int | None) -> int:
    """Return the number of validation images for a class with `count` images.

    The result is `fraction * count`, rounded, but at least 1 and at most `limit`. It leaves at least 1 image for training.
    """
    return max(1, min(round(count * fraction), count - 1, limit or count))
