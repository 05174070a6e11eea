"""Validation of the settings."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from tlcli.training.settings.config import FinetuneConfig


@pytest.mark.parametrize("mean", [127.0, -0.1, 1.01, math.nan, math.inf, -math.inf])
def test_a_mean_outside_of_the_inputs_range_is_rejected(mean: float) -> None:
    with pytest.raises(ValidationError, match=r"expected values from 0 to 1, the range of the input: divide values from 0 to 255 by 255"):
        FinetuneConfig(mean=(0.5, mean, 0.5))


@pytest.mark.parametrize("std", [0.0, -0.2, 58.0, 1.01, 1e-9, math.nan, math.inf])
def test_an_impossible_standard_deviation_is_rejected(std: float) -> None:
    with pytest.raises(ValidationError, match=r"expected values from 0\.001 to 1"):
        FinetuneConfig(std=(0.2, 0.2, std))


def test_values_of_published_networks_are_accepted() -> None:
    FinetuneConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    FinetuneConfig(mean=(0.482, 0.459, 0.408), std=(1 / 255, 1 / 255, 1 / 255))
    FinetuneConfig(mean=(1.0, 0.5, 0.0), std=(0.5, 0.229, 0.167))
