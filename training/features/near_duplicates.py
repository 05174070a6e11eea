"""Near-duplicates: images that are the same but for their size, compression, a small crop or a mirror."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tlcli.training.features.neighbours import Neighbours
from tlcli.training.features.perceptual_hash import Thumbnail, hash_distance, hash_variants

NEIGHBOURS = 20
"""Number of nearest neighbours of each image that are compared with it."""

AGREEMENTS = ((0.75, 12), (0.65, 6))
"""Minimum cosine similarity of the centred features, and maximum number of differing bits out of 63, of near-duplicates.

The second pair is for images that were compressed strongly, whose features differ more than their low frequencies.
"""

MIN_SIMILARITY = min(similarity for similarity, _ in AGREEMENTS)


class NearDuplicate(NamedTuple):
    """Pair of images that are nearly the same, with `first < second`.

    similarity: cosine similarity of their centred features. distance: number of differing bits of their perceptual hashes.
    """

    first: int
    second: int
    similarity: float
    distance: int


def near_duplicates(
    neighbours: Neighbours, thumbnail: Callable[[int], Thumbnail], queries: npt.NDArray[np.int64] | None = None
) -> list[NearDuplicate]:
    """Return the pairs of images whose features and perceptual hashes both agree, most similar first.

    Args:
        neighbours: nearest neighbours of each query; see `tlcli.training.features.neighbours`.
        thumbnail: returns the thumbnail of an image. It is called once for each image with a similar neighbour.
        queries: image of each row of `neighbours`, int64 `[m]`; None if these are all images.
    """
    hashes: dict[int, npt.NDArray[np.bool_]] = {}

    def hashes_of(index: int) -> npt.NDArray[np.bool_]:
        if index not in hashes:
            hashes[index] = hash_variants(thumbnail(index))
        return hashes[index]

    pairs = {}
    for row, place in np.argwhere(neighbours.similarities >= MIN_SIMILARITY).tolist():
        image, other = int(row if queries is None else queries[row]), int(neighbours.indices[row, place])
        pairs[min(image, other), max(image, other)] = float(neighbours.similarities[row, place])
    verified = []
    for (first, second), similarity in pairs.items():
        distance = hash_distance(hashes_of(first), hashes_of(second))
        if any(similarity >= least and distance <= most for least, most in AGREEMENTS):
            verified.append(NearDuplicate(first, second, similarity, distance))
    return sorted(verified, key=lambda pair: (-pair.similarity, pair.first, pair.second))


def groups_of(pairs: Iterable[NearDuplicate], count: int) -> npt.NDArray[np.int64]:
    """Return the group of each image, int64 `[n]`: the lowest index of the images that pairs connect it with, or its own.

    Args:
        pairs: near-duplicates.
        count: number of images n.
    """
    parents = list(range(count))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for pair in pairs:
        first, second = root(pair.first), root(pair.second)
        parents[max(first, second)] = min(first, second)
    return np.array([root(index) for index in range(count)], dtype=np.int64)


def across(pairs: Iterable[NearDuplicate], splits: Sequence[str]) -> list[NearDuplicate]:
    """Return the pairs whose images are in different splits.

    Args:
        pairs: near-duplicates.
        splits: split of each image.
    """
    return [pair for pair in pairs if splits[pair.first] != splits[pair.second]]
