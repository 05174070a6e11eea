"""Training loss: cross-entropy or focal loss, summed so that micro-batch losses add up to the batch loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from tlcli.training.engine.multi_label_loss import MultiLabelObjective, balanced_positive_weights
from tlcli.training.settings.plan import Plan


class TrainingLoss(Protocol):
    """Loss of a batch; `Objective` for one label per image, `MultiLabelObjective` for several."""

    def total(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the weighted loss in nats, summed over images."""
        ...

    def weight(self, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the total weight of the images."""
        ...

    def unweighted(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the plain cross-entropy for reports, summed over images."""
        ...


@dataclass(frozen=True, eq=False)
class Objective:
    r"""Cross-entropy or focal loss with optional label smoothing, class weights and logit adjustment.

    With the scores $p$ of the adjusted logits and the smoothed target probabilities $q$, the loss of an image is
    $\sum_c w_c q_c (1 - p_c)^\gamma (-\log p_c)$, where cross-entropy has $\gamma = 0$. For a target that is a single class without
    smoothing, this is the focal loss of Lin et al. 2017, arXiv:1708.02002, eq. 4 and 5.

    label_smoothing: smoothing factor (Szegedy et al. 2016, arXiv:1512.00567, section 7).
    class_weights: weight of each class, float `[C]`; None gives every class a weight of 1.
    focal_gamma: exponent of the focal loss; None for cross-entropy.
    logit_offsets: values that are added to the logits, float `[C]` (see `logit_offsets`); None for none.
    """

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    focal_gamma: float | None = None
    logit_offsets: Tensor | None = None

    def double(self) -> Objective:
        """Return the objective with its tensors in float64."""
        return replace(
            self,
            class_weights=None if self.class_weights is None else self.class_weights.double(),
            logit_offsets=None if self.logit_offsets is None else self.logit_offsets.double(),
        )

    def total(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the weighted loss in nats, summed over images.

        Args:
            logits: class logits, `[N, C]`.
            targets: class indices, int64 `[N]`, or class probabilities, float `[N, C]`.
            weights: weights of the images, float `[N]`, by which class weights are multiplied; None if all weigh the same.
        """
        if self.logit_offsets is not None:
            logits = logits + self.logit_offsets
        if self.focal_gamma is not None:
            focal = self._focal(logits, targets, self.focal_gamma)
            return (focal if weights is None else focal * weights).sum()
        reduction = "sum" if weights is None else "none"
        losses = functional.cross_entropy(
            logits, targets, weight=self.class_weights, label_smoothing=self.label_smoothing, reduction=reduction
        )
        return losses if weights is None else (losses * weights).sum()

    def unweighted(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy without label smoothing, weights and adjustment, summed over images."""
        return functional.cross_entropy(logits, targets, reduction="sum")

    def _focal(self, logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
        """Return the focal loss of each image, `[N]`."""
        classes = logits.shape[1]
        log_p = functional.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), 1)
        q = functional.one_hot(targets, classes) if targets.ndim == 1 else targets
        q = (1 - self.label_smoothing) * q.to(log_p.dtype) + self.label_smoothing / classes
        rest = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)  # at 0, the gradient is infinite for an exponent below 1
        losses = -q * rest**gamma * log_p
        return (losses if self.class_weights is None else losses * self.class_weights).sum(1)

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


def logit_offsets(labels: npt.NDArray[np.int64], classes: int, tau: float) -> Tensor:
    """Return `tau * log(n_c / n)`, float `[C]`, to add to the logits in the loss (Menon et al. 2021, arXiv:2007.07314, eq. 10).

    A network trained so has to exceed the prior of a frequent class by itself, and its own logits then minimise the balanced error.
    A class without images counts as one with one image.
    """
    counts = np.bincount(labels, minlength=classes)
    return torch.tensor(tau * np.log(np.maximum(counts, 1) / len(labels)), dtype=torch.get_default_dtype())


def objective_of(label_smoothing: float, plan: Plan, labels: npt.NDArray[np.int64], classes: int, device: torch.device) -> TrainingLoss:
    """Build the objective of a plan. The labels of the training images determine the task, balanced class weights and priors."""
    if labels.ndim == 2:
        return MultiLabelObjective(
            asymmetric=plan.config.loss == "asymmetric",
            label_smoothing=label_smoothing,
            positive_weights=balanced_positive_weights(labels).to(device) if plan.config.class_weights == "balanced" else None,
        )
    return single_label_objective(label_smoothing, plan, labels, classes, device)


def single_label_objective(
    label_smoothing: float, plan: Plan, labels: npt.NDArray[np.int64], classes: int, device: torch.device
) -> Objective:
    """Build the objective of a plan for one label per image."""
    tau = plan.config.logit_adjustment
    return Objective(
        label_smoothing,
        class_weights=balanced_weights(labels, classes).to(device) if plan.config.class_weights == "balanced" else None,
        focal_gamma=plan.focal_gamma,
        logit_offsets=logit_offsets(labels, classes, tau).to(device) if tau else None,
    )
