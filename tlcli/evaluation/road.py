"""ROAD, remove and debias (Rong et al. 2022, arXiv:2202.00449): removed pixels are filled in from what surrounds them.

Painted over in one colour, removed pixels leave an outline that tells of the class by itself; filled in, they tell little.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tlcli.contract.process.cores import usable_cores
from tlcli.evaluation.perturbation import Bytes, Flags, Floats, Indices, Score, rounded

if TYPE_CHECKING:
    from scipy.sparse import csc_matrix

SHARES = (0.2, 0.4, 0.6, 0.8)
"""Of the pixels, that are removed."""

NOISE = 0.01 * 255
"""The standard deviation of what is added to a filled-in pixel, in grey levels."""

_NEIGHBOURS = tuple(
    ((down, across), 1 / 6 if down == 0 or across == 0 else 1 / 12) for down in (-1, 0, 1) for across in (-1, 0, 1) if down or across
)
"""Where a pixel's neighbours are, and what each weighs."""


@dataclass(frozen=True)
class Road:
    """The class's probability, a share of `SHARES` each: the most relevant pixels removed first (`morf`), the least relevant (`lerf`)."""

    morf: Floats
    lerf: Floats

    @property
    def combined(self) -> float:
        """(LeRF - MoRF) / 2, the mean over the shares: large is good, 0 is what a map that knows nothing gets."""
        return float((self.lerf - self.morf).mean() / 2)


def road(image: Bytes, order: Indices, score: Score, noise: Floats) -> Road:
    """ROAD of one map.

    Args:
        image: the input, `[H, W, 3]`.
        order: its pixels, the most important first, `[H * W]`.
        score: asks the model.
        noise: from `noise_for`.
    """

    def without(positions: Indices) -> Bytes:
        missing = np.zeros(len(order), dtype=np.bool_)
        missing[positions] = True
        return imputed(image, missing.reshape(image.shape[:2]), noise)

    removed = [sequence[: round(share * len(order))] for sequence in (order, order[::-1]) for share in SHARES]
    with ThreadPoolExecutor(max_workers=min(len(removed), usable_cores())) as pool:  # SuperLU leaves the GIL
        scores = score(pool.map(without, removed))
    return Road(scores[: len(SHARES)], scores[len(SHARES) :])


def noise_for(shape: tuple[int, ...], seed: int, number: int) -> Floats:
    """What `imputed` adds to image `number`: the same for every map of it, so that maps differ by nothing else."""
    return np.random.default_rng([seed, number]).normal(0.0, NOISE, shape)


def imputed(image: Bytes, missing: Flags, noise: Floats) -> Bytes:
    """The image with its missing pixels filled in, noise upon them, rounded to 8 bits.

    Args:
        image: `[H, W, 3]`.
        missing: `[H, W]`; not all of them.
        noise: grey levels, `[H, W, 3]`; read where pixels are missing.
    """
    filled = image.astype(np.float64)
    if missing.any():
        filled[missing] = solved(image, missing) + noise[missing]
    return rounded(filled)


def solved(image: Bytes, missing: Flags) -> Floats:
    """Values for the missing pixels such that each is the weighted mean of its neighbours, missing or not.

    Neighbours beside one another weigh 1/6, diagonal ones 1/12; at the image's edge those that there are share the weight.

    Returns:
        `[n, channels]`, the missing pixels in the order in which they are read.

    Raises:
        ValueError: every pixel is missing.
    """
    from scipy.sparse.linalg import splu

    if missing.all():
        raise ValueError("every pixel is missing: nothing is left to fill in from")
    system, known = _equations(image, missing)
    solution: Floats = splu(system, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve(known)
    return solution


def _equations(image: Bytes, missing: Flags) -> tuple[csc_matrix, Floats]:
    """The matrix `[n, n]`, symmetric, and the right side `[n, channels]`: what the known neighbours give to each missing pixel."""
    from scipy.sparse import csc_matrix

    outside, is_known = -2, -1
    number = int(missing.sum())
    unknowns = np.full((missing.shape[0] + 2, missing.shape[1] + 2), outside)
    unknowns[1:-1, 1:-1] = is_known
    unknowns[1:-1, 1:-1][missing] = np.arange(number)
    values = np.pad(image.astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    rows, columns = (axis + 1 for axis in np.nonzero(missing))
    here = np.arange(number)
    weights, right = np.zeros(number), np.zeros((number, image.shape[2]))
    entries: list[tuple[Indices, Indices, Floats]] = []
    for (down, across), weight in _NEIGHBOURS:
        there = unknowns[rows + down, columns + across]
        weights += weight * (there != outside)
        right += weight * (there == is_known)[:, None] * values[rows + down, columns + across]
        both = there >= 0
        entries.append((here[both], there[both], np.full(int(both.sum()), -weight)))
    entries.append((here, here, weights))
    row, column, entry = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    return csc_matrix((entry, (row, column)), shape=(number, number)), right
