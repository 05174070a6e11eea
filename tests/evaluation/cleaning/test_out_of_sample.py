"""Probabilities are out of sample: those of scikit-learn's regression fitted on the other folds, whose strength has the lowest loss."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from tlcli.evaluation.cleaning.out_of_sample import FOLDS, STRENGTHS, assign_folds, out_of_sample, principal_components


def problem(n: int = 120, d: int = 6) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    chance = np.random.default_rng(0)
    labels = chance.integers(0, 3, n)
    return (chance.normal(size=(n, d)) + chance.normal(size=(3, d))[labels]).astype(np.float32), labels


def test_probabilities_match_scikit_learn() -> None:
    rows, labels = problem()
    groups = np.arange(len(labels))
    ours = out_of_sample(rows, labels, 3, groups, seed=3)
    folds, inputs = assign_folds(labels, groups, 3), principal_components(rows, 128)
    losses = {}
    for l2 in STRENGTHS:
        expected = np.empty((len(labels), 3))
        for fold in range(FOLDS):
            train = folds != fold
            model = LogisticRegression(C=1 / (train.sum() * l2), tol=1e-10, max_iter=10_000).fit(inputs[train], labels[train])
            expected[~train] = model.predict_proba(inputs[~train])
        losses[l2] = log_loss(labels, expected)
        if l2 == ours.strength:
            assert ours.probabilities == pytest.approx(expected, abs=0.01)
    assert ours.strength == min(losses, key=lambda l2: losses[l2])
    assert ours.loss == pytest.approx(losses[ours.strength], rel=1e-3)


def test_principal_components_match_scikit_learn() -> None:
    rows, _ = problem()
    ours = principal_components(rows, 4)
    theirs = PCA(4).fit_transform(rows.astype(np.float64))
    theirs /= np.sqrt(np.square(theirs).sum(1).mean())
    assert np.abs(ours) == pytest.approx(np.abs(theirs), abs=1e-6)
    assert np.square(ours).sum(1).mean() == pytest.approx(1)


def test_groups_stay_in_one_fold_and_classes_are_spread() -> None:
    labels = np.repeat([0, 1], [20, 10])
    groups = np.arange(30)
    groups[5] = groups[2] = 1
    folds = assign_folds(labels, groups, 0)
    assert folds[1] == folds[2] == folds[5]
    assert np.bincount(folds[20:], minlength=FOLDS).tolist() == [2] * FOLDS
    assert (folds == assign_folds(labels, groups, 0)).all()
    assert (folds != assign_folds(labels, groups, 1)).any()
