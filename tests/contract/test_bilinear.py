"""The same numbers as PyTorch's, for every pair of sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from contract import bilinear

SIZES = [
    ((7, 7), (224, 224)),
    ((14, 10), (224, 97)),
    ((7, 7), (7, 7)),
    ((5, 6), (7, 11)),
    ((30, 31), (7, 9)),
    ((1, 1), (5, 4)),
    ((1, 9), (3, 1)),
]


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_it_is_pytorchs_with_align_corners_off(source: tuple[int, int], target: tuple[int, int]) -> None:
    values = np.random.default_rng(0).normal(size=(2, 3, *source))
    expected = functional.interpolate(torch.from_numpy(values), target, mode="bilinear", align_corners=False).numpy()
    np.testing.assert_allclose(bilinear.resize(values, *target), expected, atol=1e-6)
    single = bilinear.resize(values.astype(np.float32), *target)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, atol=1e-5)
