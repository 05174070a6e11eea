"""Statistical significance: confidence interval of a proportion, and McNemar's test for two networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    Args:
        right: number of successes, from 0 to `count`.
        count: number of trials, at least 1.

    Returns:
        The lower and upper bound, in [0, 1].
    """
    from scipy.stats import binomtest  # the import takes a second and is needed only for reports and comparisons

    interval = binomtest(right, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class McNemar:
    """Result of McNemar's test for two networks on the same images.

    only_first, only_second: number of images that only the first or only the second network classifies correctly.
    p: p-value in (0, 1], the probability of a split at least this uneven if both networks were equally accurate.
    """

    only_first: int
    only_second: int
    p: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Compare two networks with McNemar's exact test, a two-sided binomial test (McNemar 1947, doi:10.1007/BF02295996).

    Args:
        first: True for each image that the first network classifies correctly, `[n]`.
        second: the same for the second network, with the images in the same order, `[n]`.

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
