"""Metrics for several labels per image, held against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, log_loss

from tlcli.training.metrics.multi_label import average_precision, best_threshold, score_labels

TOLERANCE = 1e-6


def drawn(count: int = 200, classes: int = 5, digits: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits that know something of the labels, with ties if there are few digits, and the labels."""
    rng = np.random.default_rng(0)
    labels = (rng.random((count, classes)) < np.linspace(0.05, 0.6, classes)).astype(np.int64)
    logits = np.round(2.0 * labels - 1 + rng.normal(0, 1.5, labels.shape), digits)
    return torch.from_numpy(logits), torch.from_numpy(labels)


@pytest.mark.parametrize("digits", [6, 0], ids=["distinct", "with ties"])
def test_scores_equal_those_of_scikit_learn(digits: int) -> None:
    logits, labels = drawn(digits=digits)
    scores = score_labels(logits, labels, "abcde")
    values, truth = logits.sigmoid().numpy(), labels.numpy()
    assigned = values >= np.array(scores.thresholds)
    per_class = average_precision_score(truth, values, average=None)
    assert [row.average_precision for row in scores.classes] == pytest.approx(per_class, abs=TOLERANCE)
    assert scores.mean_ap == pytest.approx(per_class.mean(), abs=TOLERANCE)
    assert [row.f1 for row in scores.classes] == pytest.approx(f1_score(truth, assigned, average=None), abs=TOLERANCE)
    assert scores.macro_f1 == pytest.approx(f1_score(truth, assigned, average="macro"), abs=TOLERANCE)
    assert scores.micro_f1 == pytest.approx(f1_score(truth, assigned, average="micro"), abs=TOLERANCE)
    assert scores.exact_match == pytest.approx((assigned == truth).all(1).mean())
    losses = [log_loss(truth[:, index], values[:, index]) for index in range(5)]
    assert scores.loss == pytest.approx(np.mean(losses), abs=TOLERANCE)


@pytest.mark.parametrize("digits", [6, 0], ids=["distinct", "with ties"])
def test_no_threshold_has_a_higher_f1(digits: int) -> None:
    logits, labels = drawn(digits=digits)
    values, truth = logits.sigmoid().numpy(), labels.numpy()
    for index in range(5):
        fitted = best_threshold(truth[:, index], values[:, index])
        every = [f1_score(truth[:, index], values[:, index] >= threshold) for threshold in np.unique(values[:, index])]
        assert f1_score(truth[:, index], values[:, index] >= fitted) == pytest.approx(max(every), abs=1e-12)
        assert np.abs(values[:, index] - fitted).min() > 1e-5 if digits == 0 else True


def test_a_threshold_between_separable_scores_is_halfway() -> None:
    assert best_threshold(np.array([1, 0, 1, 0]), np.array([0.9, 0.2, 0.6, 0.1])) == pytest.approx(0.4)


def test_a_class_without_images_has_no_average_precision_and_does_not_count_in_the_means() -> None:
    logits, labels = drawn()
    with_empty = torch.cat([labels, torch.zeros_like(labels[:, :1])], 1)
    scores = score_labels(torch.cat([logits, logits[:, :1]], 1), with_empty, "abcdef")
    assert scores.classes[5].average_precision is None
    assert scores.mean_ap == pytest.approx(score_labels(logits, labels, "abcde").mean_ap)
    assert average_precision(np.zeros(3, np.int64), np.ones(3)) is None


def test_given_thresholds_are_kept() -> None:
    logits, labels = drawn()
    assert score_labels(logits, labels, "abcde", [0.1, 0.2, 0.3, 0.4, 0.5]).thresholds == (0.1, 0.2, 0.3, 0.4, 0.5)
