"""How much of a figure is chance: what is known of a share, and of the difference between two networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_SURE = 1.959963984540054
"""Standard errors on either side that make a 95 % interval: the normal distribution's quantile at 0.975."""


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    Args:
        right: of `count`, at most as many.
        count: at least 1.

    Returns:
        Its ends, in [0, 1].
    """
    share, square = right / count, _SURE**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    reach = _SURE / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return (0.0 if right == 0 else middle - reach), (1.0 if right == count else middle + reach)


@dataclass(frozen=True)
class McNemar:
    """Two networks on the same images.

    only_first, only_second: images that one of them alone has right.
    p: how likely so uneven a split or a more uneven one would be if both were equally good, in (0, 1].
    """

    only_first: int
    only_second: int
    p: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """McNemar's exact test (McNemar 1947, doi:10.1007/BF02295996): two-sided, binomial, in whole numbers until the last division.

    Args:
        first: whether the first network has each image right, `[n]`.
        second: the same of the second network, image by image.

    Raises:
        ValueError: not as many.
    """
    pairs = list(zip(first, second, strict=True))
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    apart = only_first + only_second
    term = tail = 1  # the binomial coefficients of `apart` over 0, 1, ...
    for number in range(min(only_first, only_second)):
        term = term * (apart - number) // (number + 1)
        tail += term
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**apart))
