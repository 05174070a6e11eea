"""Fusion of maps: each is scaled to [0, 1] and enlarged to the largest, and the maximum is taken."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from tlcli.contract.maps.fusion import fuse


def scaled(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min())


def test_it_is_the_maximum_of_the_scaled_and_enlarged() -> None:
    generator = np.random.default_rng(1)
    maps = [generator.normal(0, scale, (2, 3, *size)).astype(np.float32) for scale, size in ((1, (4, 9)), (100, (7, 5)))]
    found = fuse(maps)
    assert found.dtype == np.float32
    assert found.shape == (2, 3, 7, 9)
    for n in range(2):
        for k in range(3):
            enlarged = [
                functional.interpolate(torch.from_numpy(scaled(one[n, k]))[None, None], (7, 9), mode="bilinear", align_corners=False)[0, 0]
                for one in maps
            ]
            np.testing.assert_allclose(found[n, k], np.maximum(*(one.numpy() for one in enlarged)), atol=1e-6)


def test_constant_maps_and_maps_that_are_not_finite_count_as_zeros() -> None:
    other = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
    for odd in (np.full_like(other, 5), np.full_like(other, np.nan), np.where(other > 4, np.inf, other)):
        np.testing.assert_allclose(fuse([odd, other]), scaled(other), atol=1e-6)
        np.testing.assert_array_equal(fuse([odd]), np.zeros_like(other))
