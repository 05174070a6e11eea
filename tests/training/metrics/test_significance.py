"""Confidence intervals and McNemar's test, compared with their formulas."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from tlcli.training.metrics.significance import mcnemar, wilson_interval

QUANTILE = 1.959963984540054
"""The normal distribution's quantile at 0.975."""


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (0, 40), (40, 40), (7, 9), (983, 1000), (59_999, 60_000)])
def test_the_interval_of_a_proportion_is_wilsons(right: int, count: int) -> None:
    share, square = right / count, QUANTILE**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half_width = QUANTILE / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    low, high = wilson_interval(right, count)
    assert (low, high) == pytest.approx((centre - half_width, centre + half_width), abs=1e-12)
    assert low >= 0
    assert high <= 1


@pytest.mark.parametrize(("first", "second"), [(0, 1), (3, 3), (1, 9), (9, 1), (2, 15), (40, 61), (700, 800), (0, 2000)])
def test_mcnemars_p_is_that_of_the_exact_binomial_test(first: int, second: int) -> None:
    a = [True] * first + [False] * second + [True] * 5 + [False] * 4
    b = [False] * first + [True] * second + [True] * 5 + [False] * 4
    result = mcnemar(a, b)
    assert (result.only_first, result.only_second) == (first, second)
    tail = sum(math.comb(first + second, k) for k in range(min(first, second) + 1))
    assert result.p == pytest.approx(float(min(Fraction(1), Fraction(2 * tail, 2 ** (first + second)))), rel=1e-12, abs=1e-300)


def test_mcnemars_p_by_hand() -> None:
    """One against four: 2 (1 + 5) / 32."""
    assert mcnemar([True] + [False] * 4, [False] + [True] * 4).p == pytest.approx(0.375, rel=1e-12)


def test_networks_that_are_right_on_the_same_images_do_not_differ() -> None:
    assert mcnemar([True, False, True], [True, False, True]).p == 1.0


def test_equally_good_networks_rarely_differ_significantly() -> None:
    """At most one pair in twenty has p < 0.05."""
    rng = np.random.default_rng(3)
    pairs = ((rng.random(200) < 0.9, rng.random(200) < 0.9) for _ in itertools.repeat(None, 400))
    assert np.mean([mcnemar(a.tolist(), b.tolist()).p < 0.05 for a, b in pairs]) <= 0.05


def test_sequences_of_different_lengths_are_rejected() -> None:
    with pytest.raises(ValueError, match="shorter"):
        mcnemar([True, True], [True])
