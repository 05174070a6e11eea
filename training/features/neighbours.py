"""Nearest neighbours by cosine similarity, computed exactly in blocks of rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

_BLOCK = 1024
"""Query rows per matrix product, which bounds the similarities in memory to 40 MB for 10,000 images."""


class Neighbours(NamedTuple):
    """Nearest neighbours of m queries, most similar first.

    similarities: cosine similarities, float32 `[m, k]`. indices: rows of the searched features, int64 `[m, k]`.
    """

    similarities: npt.NDArray[np.float32]
    indices: npt.NDArray[np.int64]


def unit_rows(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the rows of `[n, d]`, centred on their mean and scaled to length 1.

    Features behind a ReLU are positive, so that the cosine of any two of them is high. Centring makes unrelated images orthogonal.
    """
    centred = features - features.mean(axis=0, dtype=np.float64).astype(np.float32)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)


def nearest_neighbours(rows: npt.NDArray[np.float32], count: int) -> Neighbours:
    """Return the nearest other rows of each row.

    Args:
        rows: rows of length 1, float32 `[n, d]`; see `unit_rows`.
        count: number of neighbours k; at most n - 1 are returned.
    """
    everything = torch.from_numpy(np.ascontiguousarray(rows))
    kept = min(count, len(rows) - 1)
    similarities = np.empty((len(rows), kept), dtype=np.float32)
    indices = np.empty((len(rows), kept), dtype=np.int64)
    for start in range(0, len(rows), _BLOCK):
        block = everything[start : start + _BLOCK] @ everything.T
        own = torch.arange(len(block))
        block[own, start + own] = -torch.inf
        best = block.topk(kept, dim=1)
        similarities[start : start + _BLOCK], indices[start : start + _BLOCK] = best.values.numpy(), best.indices.numpy()
    return Neighbours(similarities, indices)


def nearest_of_others(
    rows: npt.NDArray[np.float32], groups: npt.NDArray[np.int64], queries: npt.NDArray[np.int64], count: int
) -> Neighbours:
    """Return the nearest images of each query in other groups than its own, such as other classes or other splits.

    Args:
        rows: rows of length 1, float32 `[n, d]`.
        groups: group of each row, int64 `[n]`.
        queries: rows to find neighbours of, int64 `[m]`.
        count: number of neighbours k; at most n are returned. Where the other groups have fewer images, the index is -1.
    """
    everything = torch.from_numpy(np.ascontiguousarray(rows))
    kept = min(count, len(rows))
    similarities = np.empty((len(queries), kept), dtype=np.float32)
    indices = np.empty((len(queries), kept), dtype=np.int64)
    for start in range(0, len(queries), _BLOCK):
        chosen = queries[start : start + _BLOCK]
        block = everything[torch.from_numpy(chosen)] @ everything.T
        block[torch.from_numpy(groups[chosen][:, None] == groups[None])] = -torch.inf
        best = block.topk(kept, dim=1)
        similarities[start : start + _BLOCK] = best.values.numpy()
        indices[start : start + _BLOCK] = torch.where(best.values.isneginf(), -1, best.indices).numpy()
    return Neighbours(similarities, indices)
