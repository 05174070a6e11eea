"""Fitted temperature, compared with a search for the minimum of the loss that does not use its slope."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional

from tlcli.training.metrics.calibration import calibration
from tlcli.training.metrics.temperature_scaling import MAX_TEMPERATURE, MIN_TEMPERATURE, fit_temperature


def calibrated(n: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return calibrated logits and labels: each label is sampled with the probabilities that its logits give."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return logits, logits.softmax(1).multinomial(1, generator=generator)[:, 0]


def minimized(logits: Tensor, labels: Tensor) -> float:
    """Return the T of least loss, found by bracketing its logarithm."""
    loss = lambda exponent: float(functional.cross_entropy(logits.double() / np.exp(exponent), labels))  # noqa: E731
    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.01), np.log(1000)), method="bounded", options={"xatol": 1e-9}).x))


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("too_large", [0.3, 1.0, 7.0])
def test_the_fitted_temperature_minimizes_the_loss(classes: int, too_large: float) -> None:
    logits, labels = calibrated(300, classes, seed=classes)
    temperature = fit_temperature((too_large * logits).float(), labels)
    assert temperature == pytest.approx(minimized(too_large * logits, labels), rel=1e-4)


def test_the_fit_recovers_a_known_factor() -> None:
    logits, labels = calibrated(40_000, 10)
    assert fit_temperature(logits, labels) == pytest.approx(1, abs=0.02)
    assert fit_temperature(5 * logits, labels) == pytest.approx(5 * fit_temperature(logits, labels), rel=1e-9)


def test_scores_are_calibrated_afterwards() -> None:
    logits, labels = calibrated(4000, 5)
    overconfident = 4 * logits
    after = overconfident / fit_temperature(overconfident, labels)
    errors = [calibration_error(each, labels) for each in (overconfident, after)]
    assert errors[1] < 0.03 < 0.15 < errors[0]


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    confidence, first = logits.softmax(1).max(1)
    return calibration(confidence.numpy(), (first == labels).numpy()).ece


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_without_a_minimum_the_temperature_is_a_bound(scale: float) -> None:
    right = scale * torch.eye(4)
    assert fit_temperature(right, torch.arange(4)) == MIN_TEMPERATURE
    assert fit_temperature(right, torch.tensor([1, 2, 3, 0])) == MAX_TEMPERATURE
