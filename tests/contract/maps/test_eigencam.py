"""Eigen-CAM and Eigen-Grad-CAM against a singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tlcli.contract.maps.eigencam import eigen_cam, eigen_grad_cam

SHAPES = [(3, 5, 4), (20, 5, 4), (64, 3, 3), (1, 6, 5)]
"""Shapes with fewer channels than positions, equally many, more, and one."""


def decomposed(values: np.ndarray) -> np.ndarray:
    """Project `[c, h, w]` to `[h, w]`: centred columns times the first right singular vector, with the sign of their sum."""
    matrix = torch.from_numpy(values.astype(np.float64)).flatten(1).T
    matrix = matrix - matrix.mean(0)
    projected = matrix @ torch.linalg.svd(matrix, full_matrices=False).Vh[0]
    if projected @ matrix.sum(1) < 0:
        projected = -projected
    return projected.reshape(values.shape[1:]).numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_eigen_cam_is_the_projection_on_the_first_component(shape: tuple[int, int, int]) -> None:
    features = np.random.default_rng(2).gamma(1.0, 1.0, (3, *shape)).astype(np.float32)
    found = eigen_cam(features, 2)
    assert (found.shape, found.dtype) == ((3, 2, *shape[1:]), np.float32)
    for one, maps in zip(features, found, strict=True):
        np.testing.assert_allclose(maps[0], decomposed(one), atol=1e-5)
        np.testing.assert_array_equal(maps[0], maps[1])
    assert found.min() < 0, "it is not rectified"


@pytest.mark.parametrize("shape", SHAPES)
def test_eigen_grad_cam_is_the_same_of_the_products(shape: tuple[int, int, int]) -> None:
    generator = np.random.default_rng(3)
    features, gradients = (
        generator.gamma(1.0, 1.0, (2, *shape)).astype(np.float32),
        generator.normal(size=(2, 3, *shape)).astype(np.float32),
    )
    found = eigen_grad_cam(features, gradients)
    assert (found.shape, found.dtype) == ((2, 3, *shape[1:]), np.float32)
    for n in range(2):
        for k in range(3):
            np.testing.assert_allclose(found[n, k], decomposed(features[n] * gradients[n, k]), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_map_is_high_where_the_channels_are(shape: tuple[int, int, int]) -> None:
    features = np.random.default_rng(4).uniform(0, 0.1, (1, *shape)).astype(np.float32)
    features[:, :, 1, 2] += 5
    assert np.unravel_index(eigen_cam(features, 1)[0, 0].argmax(), shape[1:]) == (1, 2)
    assert np.unravel_index(eigen_cam(-features, 1)[0, 0].argmin(), shape[1:]) == (1, 2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e-30, 3e30, -7.3])
def test_activations_that_are_the_same_everywhere_give_zeros(shape: tuple[int, int, int], value: float) -> None:
    features = (value * np.arange(1, shape[0] + 1)[None, :, None, None] * np.ones((1, *shape))).astype(np.float32)
    np.testing.assert_array_equal(eigen_cam(features, 2), np.zeros((1, 2, *shape[1:])))
    np.testing.assert_array_equal(eigen_grad_cam(features, np.full((1, 2, *shape), 0.3, np.float32)), np.zeros((1, 2, *shape[1:])))
