"""Logistic regression matches scikit-learn at every strength, whatever fit it starts from."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tlcli.training.engine.logistic_regression import fit_logistic
from tlcli.training.engine.loss import Objective, balanced_weights

STRENGTHS = (1.0, 0.03, 0.001)


def problem(seed: int = 0, n: int = 150, d: int = 12, classes: int = 4) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    draw = np.random.default_rng(seed)
    labels = draw.choice(classes, n, p=[0.5, 0.25, 0.15, 0.1])
    return draw.normal(size=(n, d)) + draw.normal(size=(classes, d))[labels], labels.astype(np.int64)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("weighting", [None, "balanced"])
def test_fits_match_scikit_learn(with_bias: bool, weighting: str | None) -> None:
    features, labels = problem()
    weights = balanced_weights(labels, 4).double() if weighting else None
    fits = list(
        fit_logistic(torch.from_numpy(features), torch.from_numpy(labels), 4, STRENGTHS, Objective(class_weights=weights), with_bias)
    )
    assert [fit.l2 for fit in fits] == sorted(STRENGTHS, reverse=True)
    for fit in fits:
        reference = LogisticRegression(
            C=1 / (len(labels) * fit.l2), fit_intercept=with_bias, class_weight=weighting, tol=1e-10, max_iter=10_000
        ).fit(features, labels)
        expected = reference.decision_function(features)
        found = (torch.from_numpy(features) @ fit.weight.t() + fit.bias).numpy()
        found -= found.mean(1, keepdims=True)  # only differences of logits count
        np.testing.assert_allclose(found, expected - expected.mean(1, keepdims=True), atol=1e-3 * np.abs(expected).max())


def test_the_start_makes_no_difference() -> None:
    features, labels = map(torch.from_numpy, problem(1))
    *_, along = fit_logistic(features, labels, 4, STRENGTHS, Objective())
    (straight,) = fit_logistic(features, labels, 4, STRENGTHS[-1:], Objective())
    torch.testing.assert_close(along.weight, straight.weight, rtol=1e-2, atol=1e-3)
    assert along.loss == pytest.approx(straight.loss, rel=1e-4)


def test_weights_of_images_match_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    features, labels = rng.normal(size=(200, 5)), rng.integers(0, 3, 200)
    weights = rng.uniform(0.1, 5, 200)
    (fitted,) = fit_logistic(
        torch.from_numpy(features), torch.from_numpy(labels), 3, [0.01], Objective(), weights=torch.from_numpy(weights)
    )
    peer = LogisticRegression(C=1 / (weights.sum() * 0.01), max_iter=10_000, tol=1e-10).fit(features, labels, sample_weight=weights)
    ours = fitted.weight.numpy() - fitted.weight.numpy().mean(0)
    np.testing.assert_allclose(ours, peer.coef_ - peer.coef_.mean(0), atol=1e-3)
