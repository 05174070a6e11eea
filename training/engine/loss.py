"""Training loss: cross-entropy with label smoothing and class weights, summed so that micro-batches add up to their batch."""

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
    """Cross-entropy.

    label_smoothing: Szegedy et al. 2016, arXiv:1512.00567, section 7.
    class_weights: float `[C]`; None weighs every class 1.
    """

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None

    def total(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted sum over images, in nats.

        Args:
            logits: `[N, C]`.
            targets: class indices, int64 `[N]`, or class probabilities, float `[N, C]`.
        """
        return functional.cross_entropy(logits, targets, weight=self.class_weights, label_smoothing=self.label_smoothing, reduction="sum")

    def weight(self, targets: Tensor) -> Tensor:
        """Return the sum of the images' weights; `total` divided by it is the mean."""
        if self.class_weights is None:
            return torch.tensor(float(len(targets)), device=targets.device)
        return (self.class_weights[targets] if targets.ndim == 1 else targets @ self.class_weights).sum()


def balanced_weights(labels: npt.NDArray[np.int64], classes: int) -> Tensor:
    """Return class weights `n / (C n_c)`, float `[C]`: each class counts alike, and the mean weight of an image is 1."""
    counts = np.bincount(labels, minlength=classes)
    return torch.tensor(len(labels) / (classes * np.maximum(counts, 1)), dtype=torch.get_default_dtype())


def objective_of(label_smoothing: float, plan: Plan, labels: npt.NDArray[np.int64], classes: int, device: torch.device) -> Objective:
    """Return the objective of a plan, for training images with these labels."""
    weights = balanced_weights(labels, classes).to(device) if plan.config.class_weights == "balanced" else None
    return Objective(label_smoothing, weights)
