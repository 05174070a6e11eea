"""Loss for several labels per image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from tlcli.training.engine.loss import Objective, objective_of
from tlcli.training.engine.multi_label_loss import MultiLabelObjective, balanced_positive_weights
from tlcli.training.settings.config import FinetuneConfig
from tlcli.training.settings.plan import plan_for_task, resolve_plan

LOGITS = torch.tensor([[2.0, -1.0, 0.3], [-3.0, 0.5, 1.5]], dtype=torch.float64)
LABELS = torch.tensor([[1, 0, 1], [0, 0, 1]])


def test_the_loss_is_pytorchs_binary_cross_entropy_averaged_over_the_classes() -> None:
    expected = functional.binary_cross_entropy_with_logits(LOGITS, LABELS.double())
    objective = MultiLabelObjective()
    assert objective.total(LOGITS, LABELS) / objective.weight(LABELS) == pytest.approx(float(expected))


def test_the_asymmetric_loss_is_that_of_the_paper() -> None:
    """Equations 4 to 7 of arXiv:2009.14119, written out, with exponents 0 and 4 and a margin of 0.05."""
    total = 0.0
    for z, y in zip(LOGITS.flatten().tolist(), LABELS.flatten().tolist(), strict=True):
        p = 1 / (1 + np.exp(-z))
        shifted = max(p - 0.05, 0.0)
        total += -np.log(p) if y else -(shifted**4) * np.log(1 - shifted)
    assert float(MultiLabelObjective(asymmetric=True).total(LOGITS, LABELS)) == pytest.approx(total / 3)


def test_easy_negatives_cost_nothing_in_the_asymmetric_loss() -> None:
    logits = torch.tensor([[-4.0]], requires_grad=True)
    loss = MultiLabelObjective(asymmetric=True).total(logits, torch.zeros(1, 1))
    loss.backward()
    assert loss.item() == 0 == logits.grad.item()


def test_balanced_weights_make_both_sides_of_a_class_weigh_the_same() -> None:
    labels = np.array([[1, 0], [0, 0], [0, 1], [0, 1]])
    weights = balanced_positive_weights(labels)
    assert weights.tolist() == [3.0, 1.0]
    assert (weights * torch.from_numpy(labels).sum(0)).tolist() == (4 - labels.sum(0)).tolist()


def test_weights_of_images_scale_their_losses() -> None:
    objective = MultiLabelObjective()
    one, other = (objective.total(LOGITS[row : row + 1], LABELS[row : row + 1]) for row in (0, 1))
    assert torch.allclose(objective.total(LOGITS, LABELS, torch.tensor([2.0, 0.5])), 2 * one + 0.5 * other)
    assert objective.weight(LABELS, torch.tensor([2.0, 0.5])) == 2.5


def test_the_labels_choose_the_objective_and_there_is_no_smoothing_by_default() -> None:
    plan = plan_for_task(resolve_plan(FinetuneConfig(mode="full", loss="asymmetric")), "multi-label")
    objective = objective_of(plan.full_label_smoothing, plan, LABELS.numpy(), 3, torch.device("cpu"))
    assert isinstance(objective, MultiLabelObjective)
    assert objective.asymmetric
    assert objective.label_smoothing == 0
    assert isinstance(objective_of(0.0, plan, np.array([0, 1]), 2, torch.device("cpu")), Objective)
