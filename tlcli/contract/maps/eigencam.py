"""Eigen-CAM and Eigen-Grad-CAM: projection of a layer's activations on their first principal component."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def eigen_cam(features: Floats, classes: int) -> Floats:
    """Compute Eigen-CAM: project each position on the first principal component of the channels.

    Muhammad and Yeasin 2020, arXiv:2008.00299, define the map as the activations, a matrix `[h w, c]`, times the matrix's first right
    singular vector. Unlike in the paper, the columns are centred first, as in pytorch-grad-cam. The sign of the vector is arbitrary;
    it is chosen so that the inner product of the map and the sum of the centred channels is not negative.

    Args:
        features: activations, float32 `[N, c, h, w]`.
        classes: number of classes K. The map does not depend on the class, so it is repeated for each class.

    Returns:
        float32 `[N, K, h, w]`, not rectified. Activations that are constant over all positions give zeros.
    """
    return np.repeat(np.stack([_project(activations) for activations in features])[:, None], classes, axis=1)


def eigen_grad_cam(features: Floats, gradients: Floats) -> Floats:
    """Compute Eigen-Grad-CAM: Eigen-CAM of the activations multiplied by their gradients, for each class.

    Args:
        features: activations, float32 `[N, c, h, w]`.
        gradients: gradients of the classes' scores, float32 `[N, K, c, h, w]`.

    Returns:
        float32 `[N, K, h, w]`, not rectified. Products that are constant over all positions give zeros.
    """
    return np.stack(
        [
            np.stack([_project(activations * gradient) for gradient in class_gradients])
            for activations, class_gradients in zip(features, gradients, strict=True)
        ]
    )


def _project(values: Floats) -> Floats:
    channels, height, width = values.shape
    matrix = values.reshape(channels, height * width).T.astype(np.float64)
    matrix -= matrix[0]  # makes a constant column exactly zero; subtracting its rounded mean alone would not
    matrix -= matrix.mean(axis=0)
    # Both Gram matrices have the same largest eigenvalue, so the smaller one is decomposed; eigenvalues ascend.
    if height * width <= channels:
        eigenvalues, vectors = np.linalg.eigh(matrix @ matrix.T)
        projected = vectors[:, -1] * np.sqrt(max(eigenvalues[-1], 0.0))
    else:
        _, vectors = np.linalg.eigh(matrix.T @ matrix)
        projected = matrix @ vectors[:, -1]
    if projected @ matrix.sum(axis=1) < 0:
        projected = -projected
    return np.asarray(projected.reshape(height, width), dtype=np.float32)
