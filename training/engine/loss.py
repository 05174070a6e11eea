"""Training loss: cross-entropy with label smoothing and weights, summed so that micro-batch losses add up to the batch loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from tlcli.training.settings.plan import Plan


@dataclass(frozen=True, eq=False)
class Objective:
    """Cross-entropy loss with optional label smoothing and class weights.

    label_smoothing: smoothing factor (Szegedy et al. 2016, arXiv:1512.00567, section 7).
    class_weights: weight of each class, float `[C]`; None gives every class a weight of 1.
    """

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None

    def total(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the weighted loss in nats, summed over images.

        Args:
            logits: class logits, `[N, C]`.
            targets: class indices, int64 `[N]`, or class probabilities, float `[N, C]`.
            weights: weights of the images, float `[N]`, by which class weights are multiplied; None if all weigh the same.
        """
        reduction = "sum" if weights is None else "none"
        losses = functional.cross_entropy(
            logits, targets, weight=self.class_weights, label_smoothing=self.label_smoothing, reduction=reduction
        )
        return losses if weights is None else (losses * weights).sum()

    def weight(self, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the total weight of the images. Divide `total` by it to get the weighted mean loss."""
        if self.class_weights is None:
            return torch.tensor(float(len(targets)), device=targets.device) if weights is None else weights.sum()
        of_classes = self.class_weights[targets] if targets.ndim == 1 else targets @ self.class_weights
        return (of_classes if weights is None else of_classes * weights).sum()


def balanced_weights(labels: npt.NDArray[np.int64], classes: int) -> Tensor:
    """Return balanced class weights `n / (C n_c)`, float `[C]`.

    Every class contributes equally to the loss, and the mean weight of an image is 1.
    """
    counts = np.bincount(labels, minlength=classes)
    return torch.tensor(len(labels) / (classes * np.maximum(counts, 1)), dtype=torch.get_default_dtype())


def objective_of(label_smoothing: float, plan: Plan, labels: npt.NDArray[np.int64], classes: int, device: torch.device) -> Objective:
    """Build the objective of a plan. The labels of the training images determine balanced class weights."""
    weights = balanced_weights(labels, classes).to(device) if plan.config.class_weights == "balanced" else None
    return Objective(label_smoothing, weights)
