"""ROAD, remove and debias (Rong et al. 2022, arXiv:2202.00449), which imputes removed pixels from their surroundings.

If removed pixels are painted over in one colour, their outline alone can reveal the class. Imputed pixels reveal little.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tlcli.contract.process.cores import usable_cores
from tlcli.evaluation.perturbation import Bytes, Flags, Floats, Indices, Score, round_to_bytes

if TYPE_CHECKING:
    from scipy.sparse import csc_matrix

SHARES = (0.2, 0.4, 0.6, 0.8)
"""Fractions of the pixels to remove."""

NOISE = 0.01 * 255
"""Standard deviation of the noise added to imputed pixels, in grey levels."""

_NEIGHBOURS = tuple(
    ((down, across), 1 / 6 if down == 0 or across == 0 else 1 / 12) for down in (-1, 0, 1) for across in (-1, 0, 1) if down or across
)
"""Offsets and weights of a pixel's neighbours."""


@dataclass(frozen=True)
class Road:
    """Class probabilities after removing pixels, one for each fraction in `SHARES`.

    morf: probabilities with the most relevant pixels removed first.
    lerf: probabilities with the least relevant pixels removed first.
    """

    morf: Floats
    lerf: Floats

    @property
    def combined(self) -> float:
        """Mean of (LeRF - MoRF) / 2 over the fractions. Higher is better; a map without information is expected to score 0."""
        return float((self.lerf - self.morf).mean() / 2)


def road(image: Bytes, order: Indices, score: Score, noise: Floats) -> Road:
    """Compute ROAD for one map.

    Args:
        image: input image, `[H, W, 3]`.
        order: flat pixel indices, most important first, `[H * W]`.
        score: function that runs the model.
        noise: noise returned by `noise_for`.
    """

    def without(positions: Indices) -> Bytes:
        missing = np.zeros(len(order), dtype=np.bool_)
        missing[positions] = True
        return impute(image, missing.reshape(image.shape[:2]), noise)

    removed = [sequence[: round(share * len(order))] for sequence in (order, order[::-1]) for share in SHARES]
    with ThreadPoolExecutor(max_workers=min(len(removed), usable_cores())) as pool:  # SuperLU releases the GIL
        scores = score(pool.map(without, removed))
    return Road(scores[: len(SHARES)], scores[len(SHARES) :])


def noise_for(shape: tuple[int, ...], seed: int, number: int) -> Floats:
    """Return the noise that `impute` adds to image `number`. It is the same for every map, so that only the maps differ."""
    return np.random.default_rng([seed, number]).normal(0.0, NOISE, shape)


def impute(image: Bytes, missing: Flags, noise: Floats) -> Bytes:
    """Impute the missing pixels of an image, add noise to them, and round to 8 bits.

    Args:
        image: image, `[H, W, 3]`.
        missing: mask of the missing pixels, `[H, W]`; at least one pixel must not be missing.
        noise: noise in grey levels, `[H, W, 3]`; used only where pixels are missing.
    """
    filled = image.astype(np.float64)
    if missing.any():
        filled[missing] = solve_missing(image, missing) + noise[missing]
    return round_to_bytes(filled)


def solve_missing(image: Bytes, missing: Flags) -> Floats:
    """Solve for the missing pixels so that each is the weighted mean of all its neighbours, both missing and known.

    Direct neighbours have a weight of 1/6 and diagonal neighbours a weight of 1/12. At the image's edge, the existing neighbours share the
    weight.

    Returns:
        Missing pixels in row-major order, `[n, channels]`.

    Raises:
        ValueError: every pixel is missing.
    """
    from scipy.sparse.linalg import splu

    if missing.all():
        raise ValueError("every pixel is missing: at least one known pixel is needed")
    system, known = _equations(image, missing)
    solution: Floats = splu(system, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve(known)
    return solution


def _equations(image: Bytes, missing: Flags) -> tuple[csc_matrix, Floats]:
    """Return the system of linear equations for the missing pixels.

    Returns:
        The symmetric matrix `[n, n]`, and the right-hand side `[n, channels]` with the contribution of the known neighbours to each
        missing pixel.
    """
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
        neighbour = unknowns[rows + down, columns + across]
        weights += weight * (neighbour != outside)
        right += weight * (neighbour == is_known)[:, None] * values[rows + down, columns + across]
        both = neighbour >= 0
        entries.append((here[both], neighbour[both], np.full(int(both.sum()), -weight)))
    entries.append((here, here, weights))
    row, column, entry = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    return csc_matrix((entry, (row, column)), shape=(number, number)), right
