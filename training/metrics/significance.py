"""Statistical significance: confidence intervals of a proportion, and McNemar's test between two networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    Args:
        right: number of successes, from 0 to `count`.
        count: number of trials, at least 1.

    Returns:
        The lower and the upper end, in [0, 1].
    """
    from scipy.stats import binomtest  # a second to import, and needed for reports and comparisons only

    interval = binomtest(right, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class McNemar:
    """Result of McNemar's test of two networks on the same images.

    only_first, only_second: number of images that only that network classifies correctly.
    p: probability of a split at least this uneven if both networks were equally good, in (0, 1].
    """

    only_first: int
    only_second: int
    p: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Compare two networks by McNemar's exact test, a two-sided binomial test (McNemar 1947, doi:10.1007/BF02295996).

    Args:
        first: `[n]`, True for each image that the first network classifies correctly.
        second: `[n]`, the same for the second network, in the same order of images.

    Raises:
        ValueError: the two sequences differ in length.
    """
    from scipy.stats import binomtest

    pairs = list(zip(first, second, strict=True))
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    discordant = only_first + only_second
    p = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return McNemar(only_first, only_second, p)
