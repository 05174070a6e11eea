"""Near-duplicates across the parts of a data set, found from features that a run has computed anyway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tlcli.training.data.dataset import Dataset
from tlcli.training.features.near_duplicates import near_duplicates
from tlcli.training.features.neighbours import nearest_of_others, unit_rows
from tlcli.training.features.perceptual_hash import Thumbnail, thumbnail
from tlcli.training.features.row_file import Embeddings

MAX_PRODUCTS = 3e11
"""Maximum number of multiplications, a few seconds on two cores. Larger data sets are not compared; `tlcli clean` compares them."""

_NEIGHBOURS = 5


class PartPair(NamedTuple):
    """Image outside of the training part, and an image of an earlier part that it is nearly the same as.

    image, other: part and index of each. similarity: cosine similarity of their centred features.
    """

    image: tuple[str, int]
    other: tuple[str, int]
    similarity: float


def near_duplicates_across_parts(dataset: Dataset, embeddings: Mapping[str, Embeddings]) -> list[PartPair] | None:
    """Return the near-duplicates in different parts, most similar first, without images whose content is identical.

    Args:
        dataset: data set.
        embeddings: features of each part, float32 `[n, d]`.

    Returns:
        The pairs, or None if the data set is too large to compare in a few seconds.

    Raises:
        ImageError: an image can no longer be read.
    """
    parts = list(dataset.parts)
    places = [(part, index) for part in parts for index in range(len(dataset.parts[part]))]
    of_part = np.array([parts.index(part) for part, _ in places])
    queries = np.flatnonzero(of_part > 0)
    features = [embeddings[part] for part in parts]
    if len(queries) * len(places) * features[0].shape[1] > MAX_PRODUCTS:
        return None
    neighbours = nearest_of_others(unit_rows(np.concatenate(features)), of_part, queries, _NEIGHBOURS)

    def thumbnail_of(index: int) -> Thumbnail:
        part, number = places[index]
        return thumbnail(dataset.parts[part].load(number))

    def fingerprint(index: int) -> str:
        part, number = places[index]
        return dataset.parts[part].fingerprints[number]

    return [
        PartPair(places[pair.second], places[pair.first], pair.similarity)
        for pair in near_duplicates(neighbours, thumbnail_of, queries)
        if fingerprint(pair.first) != fingerprint(pair.second)
    ]
