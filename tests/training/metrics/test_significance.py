"""Intervals and McNemar's test, against SciPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from tlcli.training.metrics.significance import mcnemar, wilson_interval


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (0, 40), (40, 40), (7, 9), (983, 1000), (59_999, 60_000)])
def test_a_shares_interval_is_wilsons(right: int, count: int) -> None:
    expected = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("first", "second"), [(0, 1), (3, 3), (1, 9), (9, 1), (2, 15), (40, 61), (700, 800), (0, 2000)])
def test_mcnemars_p_is_that_of_the_binomial_test(first: int, second: int) -> None:
    a = [True] * first + [False] * second + [True] * 5 + [False] * 4
    b = [False] * first + [True] * second + [True] * 5 + [False] * 4
    found = mcnemar(a, b)
    assert (found.only_first, found.only_second) == (first, second)
    assert found.p == pytest.approx(stats.binomtest(first, first + second, 0.5).pvalue, rel=1e-9)


def test_by_hand() -> None:
    """One against four: 2 (1 + 5) / 32."""
    assert mcnemar([True] + [False] * 4, [False] + [True] * 4).p == 0.375


def test_networks_that_are_right_on_the_same_images_do_not_differ() -> None:
    assert mcnemar([True, False, True], [True, False, True]).p == 1.0


def test_it_seldom_finds_a_difference_where_there_is_none() -> None:
    """Of two networks that are equally good, at most one pair in twenty is told apart at 0.05."""
    chance = np.random.default_rng(3)
    pairs = ((chance.random(200) < 0.9, chance.random(200) < 0.9) for _ in itertools.repeat(None, 400))
    assert np.mean([mcnemar(a.tolist(), b.tolist()).p < 0.05 for a, b in pairs]) <= 0.05


def test_other_numbers_of_images_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        mcnemar([True, True], [True])
