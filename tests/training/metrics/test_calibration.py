"""The expected calibration error, by the definition, image by image."""

from __future__ import annotations

import numpy as np
import pytest

from tlcli.training.metrics.calibration import calibration


def by_definition(confidences: np.ndarray, right: np.ndarray, bins: int) -> float:
    total = 0.0
    for number in range(bins):
        inside = [i for i, value in enumerate(confidences) if number / bins < value <= (number + 1) / bins]
        if inside:
            total += abs(sum(right[inside]) - sum(confidences[inside])) / len(confidences)
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_it_is_what_the_paper_defines(bins: int) -> None:
    chance = np.random.default_rng(bins)
    confidences = chance.uniform(0.2, 1.0, 500)
    right = chance.random(500) < confidences**2
    found = calibration(confidences, right, bins)
    assert found.ece == pytest.approx(by_definition(confidences, right, bins))
    assert sum(one.count for one in found.bins) == 500
    for one in found.bins:
        if one.confidence is not None:
            assert one.low <= one.confidence <= one.high


def test_ends_of_the_scale() -> None:
    sure = calibration(np.array([1.0, 1.0, 0.0]), np.array([True, False, False]))
    assert sure.ece == pytest.approx(1 / 3)
    assert (sure.bins[0].count, sure.bins[-1].count) == (1, 2)
    assert (sure.bins[-1].accuracy, sure.bins[5].accuracy) == (0.5, None)


def test_scores_that_can_be_taken_at_their_word_have_none() -> None:
    assert calibration(np.full(10, 0.8), np.arange(10) < 8).ece == pytest.approx(0)
