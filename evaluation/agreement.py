"""Two files of one network side by side: how a smaller one's answers and maps differ from those of the one it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from contract.description import MapAgreement
from contract.model import Model
from evaluation.localisation import points_at
from evaluation.probing import Bytes, Flags, Values, at_input_size

BATCH_SIZE = 16
COSTLY = ("ablationcam",)
"""Methods that run what follows the layer once a channel."""
COSTLY_PICTURES = 4
"""So many pictures of theirs are compared."""


@dataclass(frozen=True)
class Shown:
    """A picture to compare on. label: its class, None if that is not known. region: where the object is in it, `[H, W]`, likewise."""

    image: Bytes
    label: int | None = None
    region: Flags | None = None


@dataclass(frozen=True)
class Agreement:
    """What two files make of the same pictures.

    pictures: how many.
    top1, top1_before: the share of those with a label that is answered first, by the smaller file and by the other; None without labels.
    agreement: the share that both give the same first class.
    maps: by name; explained is the class that the other file ranks first.
    """

    pictures: int
    top1_before: float | None
    top1: float | None
    agreement: float
    maps: dict[str, MapAgreement]


def rank_correlation(first: Values, second: Values) -> float | None:
    """Spearman's, over the positions of two maps `[h, w]`; equal values share their ranks' mean.

    Where one of them is constant there are no ranks: 0 if the other is not, None if both are.
    """
    ranks = [rankdata(values, axis=None) for values in (first, second)]
    a, b = (one - one.mean() for one in ranks)
    sizes = float(np.sqrt((a @ a) * (b @ b)))
    if sizes > 0:
        return float(a @ b) / sizes
    return None if not a.any() and not b.any() else 0.0
