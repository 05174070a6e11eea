"""Expected calibration error, compared with its definition image by image."""

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
def test_the_error_is_that_of_the_papers_definition(bins: int) -> None:
    rng = np.random.default_rng(bins)
    confidences = rng.uniform(0.2, 1.0, 500)
    right = rng.random(500) < confidences**2
    result = calibration(confidences, right, bins)
    assert result.ece == pytest.approx(by_definition(confidences, right, bins))
    assert sum(entry.count for entry in result.bins) == 500
    for entry in result.bins:
        if entry.confidence is not None:
            assert entry.low <= entry.confidence <= entry.high


def test_scores_of_0_and_1_belong_to_the_first_and_last_bin() -> None:
    sure = calibration(np.array([1.0, 1.0, 0.0]), np.array([True, False, False]))
    assert sure.ece == pytest.approx(1 / 3)
    assert (sure.bins[0].count, sure.bins[-1].count) == (1, 2)
    assert (sure.bins[-1].accuracy, sure.bins[5].accuracy) == (0.5, None)


def test_calibrated_scores_have_no_error() -> None:
    assert calibration(np.full(10, 0.8), np.arange(10) < 8).ece == pytest.approx(0)
