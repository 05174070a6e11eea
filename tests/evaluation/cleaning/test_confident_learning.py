"""Confident learning matches cleanlab, which implements the paper."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from cleanlab.count import compute_confident_joint
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores

from tlcli.evaluation.cleaning.confident_learning import confident_joint, find_label_errors


def noisy(seed: int, n: int = 400, classes: int = 4) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    chance = np.random.default_rng(seed)
    truth = chance.choice(classes, n, p=[0.4, 0.3, 0.2, 0.1])
    logits = chance.normal(size=(n, classes)) + 2 * np.eye(classes)[truth]
    labels = np.where(chance.random(n) < 0.1, chance.integers(0, classes, n), truth)
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), labels.astype(np.int64)


@pytest.mark.parametrize("seed", range(4))
def test_the_confident_joint_is_cleanlabs(seed: int) -> None:
    probabilities, labels = noisy(seed)
    theirs = compute_confident_joint(labels, probabilities, calibrate=False)
    ours = confident_joint(probabilities, labels)
    off_diagonal = ~np.eye(4, dtype=bool)
    assert ours[off_diagonal].tolist() == theirs[off_diagonal].tolist()


@pytest.mark.parametrize("seed", range(4))
def test_errors_and_their_order_are_cleanlabs(seed: int) -> None:
    probabilities, labels = noisy(seed)
    errors = find_label_errors(probabilities, labels)
    assert errors.is_error.any()
    theirs = find_label_issues(labels, probabilities, filter_by="confident_learning", n_jobs=1)
    assert errors.is_error.tolist() == theirs.tolist()
    scores = get_label_quality_scores(labels, probabilities, method="self_confidence")
    assert errors.order.tolist() == np.argsort(scores, kind="stable").tolist()


def test_an_image_is_listed_if_another_class_is_more_probable() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]])
    errors = find_label_errors(probabilities, np.array([0, 0, 1, 1]))
    assert errors.is_listed.tolist() == [False, True, False, True]
    assert errors.suggested.tolist() == [1, 1, 0, 0]
    assert errors.order.tolist() == [3, 1, 2, 0]
    assert errors.self_confidence.tolist() == pytest.approx([0.9, 0.4, 0.8, 0.3])
