"""Eigen-CAM and Eigen-Grad-CAM: what the activations of a layer have most in common, position by position."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def eigen_cam(features: Floats, classes: int) -> Floats:
    """Eigen-CAM: the positions projected on the first principal component of the channels.

    Muhammad and Yeasin 2020, arXiv:2008.00299: the activations as a matrix `[h w, c]` times its first right singular vector. Beyond
    the paper, the columns are centred first, as pytorch-grad-cam does, and the vector's sign, which is free, is chosen: the map
    and the sum of the centred channels agree, their inner product is not negative.

    Args:
        features: float32 `[N, c, h, w]`.
        classes: K; the method knows no classes, so the map is repeated for each.

    Returns:
        float32 `[N, K, h, w]`, not rectified. Activations that are the same at every position give zeros.
    """
    return np.repeat(np.stack([_project(one) for one in features])[:, None], classes, axis=1)


def eigen_grad_cam(features: Floats, gradients: Floats) -> Floats:
    """Eigen-Grad-CAM: Eigen-CAM of the activations times their gradients, for each class.

    Args:
        features: float32 `[N, c, h, w]`.
        gradients: float32 `[N, K, c, h, w]`.

    Returns:
        float32 `[N, K, h, w]`, not rectified. Products that are the same at every position give zeros.
    """
    return np.stack(
        [np.stack([_project(one * gradient) for gradient in of_classes]) for one, of_classes in zip(features, gradients, strict=True)]
    )


def _project(values: Floats) -> Floats:
    channels, height, width = values.shape
    matrix = values.reshape(channels, height * width).T.astype(np.float64)
    matrix -= matrix[0]  # so that a constant column is zero to the bit, which its rounded mean alone would not make it
    matrix -= matrix.mean(axis=0)
    # The smaller of the two Gram matrices holds the same singular value; eigenvalues ascend.
    if height * width <= channels:
        eigenvalues, vectors = np.linalg.eigh(matrix @ matrix.T)
        projected = vectors[:, -1] * np.sqrt(max(eigenvalues[-1], 0.0))
    else:
        _, vectors = np.linalg.eigh(matrix.T @ matrix)
        projected = matrix @ vectors[:, -1]
    if projected @ matrix.sum(axis=1) < 0:
        projected = -projected
    return np.asarray(projected.reshape(height, width), dtype=np.float32)
