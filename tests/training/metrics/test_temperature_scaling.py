"""The fitted temperature, against a search for the least loss that knows nothing of slopes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional

from tlcli.training.metrics.calibration import calibration
from tlcli.training.metrics.temperature_scaling import LEAST, MOST, fit_temperature


def answers(n: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that can be taken at their word: each label is drawn with the probabilities that they say."""
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=draw, dtype=torch.float64)
    return logits, logits.softmax(1).multinomial(1, generator=draw)[:, 0]


def searched(logits: Tensor, labels: Tensor) -> float:
    """The exponent of T, bracket by bracket."""
    loss = lambda exponent: float(functional.cross_entropy(logits.double() / np.exp(exponent), labels))  # noqa: E731
    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.01), np.log(1000)), method="bounded", options={"xatol": 1e-9}).x))


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("too_large", [0.3, 1.0, 7.0])
def test_it_has_the_least_loss_there_is(classes: int, too_large: float) -> None:
    logits, labels = answers(300, classes, seed=classes)
    found = fit_temperature((too_large * logits).float(), labels)
    assert found == pytest.approx(searched(too_large * logits, labels), rel=1e-4)


def test_it_finds_the_factor_that_was_put_in() -> None:
    logits, labels = answers(40_000, 10)
    assert fit_temperature(logits, labels) == pytest.approx(1, abs=0.02)
    assert fit_temperature(5 * logits, labels) == pytest.approx(5 * fit_temperature(logits, labels), rel=1e-9)


def test_scores_can_be_taken_at_their_word_afterwards() -> None:
    logits, labels = answers(4000, 5)
    sure = 4 * logits
    after = sure / fit_temperature(sure, labels)
    errors = [calibration(*(part.numpy() for part in said(each, labels))).ece for each in (sure, after)]
    assert errors[1] < 0.03 < 0.15 < errors[0]


def said(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    confidence, first = logits.softmax(1).max(1)
    return confidence, first == labels


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_where_no_temperature_is_best_it_is_a_bound(scale: float) -> None:
    right = scale * torch.eye(4)
    assert fit_temperature(right, torch.arange(4)) == LEAST
    assert fit_temperature(right, torch.tensor([1, 2, 3, 0])) == MOST
