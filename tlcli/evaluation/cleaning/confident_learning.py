"""Confident learning: probable label errors from out-of-sample probabilities (Northcutt et al. 2021, arXiv:1911.00068)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Probabilities = npt.NDArray[np.float64]
"""Out-of-sample class probabilities, `[n, C]`."""


class LabelErrors(NamedTuple):
    """Result of confident learning on n images.

    order: images from the least to the most plausible label, int64 `[n]`.
    self_confidence: probability of each image's own label, float64 `[n]`.
    suggested: most probable other class of each image, int64 `[n]`.
    is_error: True for the listed images in an off-diagonal cell of the confident joint, bool `[n]`.
    is_listed: True for images with another class that is more probable than their label, bool `[n]`.
    """

    order: npt.NDArray[np.int64]
    self_confidence: npt.NDArray[np.float64]
    suggested: npt.NDArray[np.int64]
    is_error: npt.NDArray[np.bool_]
    is_listed: npt.NDArray[np.bool_]


def find_label_errors(probabilities: Probabilities, labels: npt.NDArray[np.int64]) -> LabelErrors:
    """Find images whose label is probably wrong.

    An image is counted in the cell of its label and of its confident class, the most probable of the classes whose probability reaches the
    threshold of the class (eq. 1 and 2 of the paper). Images off the diagonal are probable errors ("confident joint", section 3.2,
    method 2). All images are ranked by self-confidence, the probability of their
    own label.

    Args:
        probabilities: out-of-sample class probabilities.
        labels: given labels, int64 `[n]`.
    """
    count = np.arange(len(labels))
    own = probabilities[count, labels]
    others = probabilities.copy()
    others[count, labels] = -1.0
    suggested = others.argmax(axis=1)
    confident = confident_classes(probabilities, labels)
    is_listed = others[count, suggested] > own
    return LabelErrors(
        order=np.argsort(own, kind="stable"),
        self_confidence=own,
        suggested=suggested,
        is_error=(confident >= 0) & (confident != labels) & is_listed,
        is_listed=is_listed,
    )


def confident_classes(probabilities: Probabilities, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the confident class of each image, int64 `[n]`; -1 for images that reach no threshold.

    The threshold of a class is the mean probability of the class over the images labelled with it. Classes without images have none.
    """
    classes = probabilities.shape[1]
    thresholds = np.array([probabilities[labels == label, label].mean() if (labels == label).any() else np.inf for label in range(classes)])
    reached = np.where(probabilities >= thresholds - _TIE, probabilities, -1.0)
    return np.where(reached.max(axis=1) >= 0, reached.argmax(axis=1), -1)


def confident_joint(probabilities: Probabilities, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the confident joint, int64 `[C, C]`: images counted by their label (row) and their confident class (column); eq. 1."""
    classes = probabilities.shape[1]
    confident = confident_classes(probabilities, labels)
    joint = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(joint, (labels[confident >= 0], confident[confident >= 0]), 1)
    return joint


_TIE = 1e-6
"""Tolerance of a threshold, so that equal probabilities reach their own mean despite rounding."""
