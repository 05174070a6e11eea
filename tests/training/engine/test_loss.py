"""Focal loss and logit adjustment, compared with formulas in NumPy, and what they do for small classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor
from torch.nn import functional

from tests.helpers.training.tiny_training import BACKBONE, config
from tlcli.contract.errors import SettingsError
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training.engine.head import classify_embeddings, train_head
from tlcli.training.engine.head_search import Features, search_head
from tlcli.training.engine.logistic_regression import fit_logistic
from tlcli.training.engine.loss import Objective, balanced_weights, logit_offsets, objective_of
from tlcli.training.models.network import Network, NetworkConfig, build
from tlcli.training.settings.plan import Plan, resolve_plan

Array = npt.NDArray[np.float64]


def problem(images: int = 12, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, labels, and weights of images."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(images, classes, generator=generator, dtype=torch.float64)
    return logits, torch.arange(images) % classes, torch.rand(images, generator=generator, dtype=torch.float64)


def focal(logits: Array, targets: Array, gamma: float, class_weights: Array) -> Array:
    """The focal loss of each image, with the scores computed without logarithms."""
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return np.asarray((-class_weights * targets * (1 - scores) ** gamma * np.log(scores)).sum(1))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["labels", "mixed"])
def test_the_focal_loss_matches_its_formula(gamma: float, smoothing: float, kind: str) -> None:
    logits, labels, weights = problem()
    one_hot = functional.one_hot(labels, 4).double()
    targets = 0.7 * one_hot + 0.3 * one_hot.roll(1, 0) if kind == "mixed" else labels
    class_weights = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    soft = targets if kind == "mixed" else one_hot
    smoothed = (1 - smoothing) * soft + smoothing / 4
    expected = focal(logits.numpy(), smoothed.numpy(), gamma, class_weights.numpy())
    objective = Objective(smoothing, class_weights, gamma)
    assert float(objective.total(logits, targets)) == pytest.approx(expected.sum())
    assert float(objective.total(logits, targets, weights)) == pytest.approx((expected * weights.numpy()).sum())
    if gamma == 0:
        assert float(objective.total(logits, targets)) == pytest.approx(float(Objective(smoothing, class_weights).total(logits, targets)))


def test_the_focal_loss_of_two_classes_is_that_of_the_paper() -> None:
    """At a score of 0.9, the loss is 100 times smaller than cross-entropy with an exponent of 2 (section 3.2)."""
    logits = torch.tensor([[0.0, np.log(9.0)]])
    plain, easy = (float(Objective(focal_gamma=gamma).total(logits, torch.tensor([1]))) for gamma in (None, 2.0))
    assert plain / easy == pytest.approx(100, rel=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_the_gradient_of_a_certain_prediction_is_finite(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    Objective(0.1, focal_gamma=gamma).total(logits, torch.tensor([0, 0])).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_logit_adjustment_matches_its_formula(tau: float) -> None:
    """Eq. 10 of the paper: the softmax cross-entropy of the logits plus tau times the log prior."""
    logits, labels, _ = problem()
    of_training = np.repeat(np.arange(4), [50, 30, 15, 5])
    adjusted = logits.numpy() + tau * np.log([0.5, 0.3, 0.15, 0.05])
    expected = -(adjusted - np.log(np.exp(adjusted).sum(1, keepdims=True)))[np.arange(12), labels.numpy()]
    objective = Objective(logit_offsets=logit_offsets(of_training, 4, tau)).double()
    assert float(objective.total(logits, labels)) == pytest.approx(expected.sum(), rel=1e-6)
    both = Objective(focal_gamma=2.0, logit_offsets=objective.logit_offsets)
    scores = np.exp(-expected)
    assert float(both.total(logits, labels)) == pytest.approx(((1 - scores) ** 2 * expected).sum(), rel=1e-6)


def test_an_adjusted_logistic_regression_differs_from_a_plain_one_by_the_priors() -> None:
    """Only the bias changes: the adjusted loss of `b` is the plain loss of `b + tau log prior`.

    Compared with scikit-learn, which has one row of weights for two classes, so that the same penalty has twice the `C`.
    """
    features, labels = lopsided(0, 400)
    of_training = logit_offsets(labels, 2, 1.0).double()
    (fitted,) = fit_logistic(torch.from_numpy(features).double(), torch.from_numpy(labels), 2, [0.01], Objective(logit_offsets=of_training))
    peer = LogisticRegression(C=2 / (len(labels) * 0.01), max_iter=10_000, tol=1e-10).fit(features, labels)
    found = (torch.from_numpy(features).double() @ fitted.weight.t() + fitted.bias + of_training).numpy()
    np.testing.assert_allclose(found[:, 1] - found[:, 0], peer.decision_function(features), atol=5e-3)


# ---- what it does for a small class


def lopsided(seed: int, images: int, width: int = 0) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return features and labels of two overlapping classes, of which the second has a tenth of the images."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(images) % 10 == 0).astype(np.int64)
    features = rng.normal(size=(images, width or 6))
    features[:, :3] += 0.8 * labels[:, None]
    return features.astype(np.float32), labels


def network() -> Network:
    torch.manual_seed(0)
    return build(NetworkConfig(backbone=BACKBONE, head="linear", num_classes=2, preprocessing=Preprocessing(height=32, width=32)))


def width_of(network: Network) -> int:
    assert isinstance(network.classifier, torch.nn.Linear)
    return network.classifier.in_features


def plan(**settings: Any) -> Plan:
    return resolve_plan(config(Path("x"), **{"epochs": 12, "lr": 1e-2, "batch_size": 32, **settings}))


def macro_recall(**settings: Any) -> float:
    model = network()
    width = width_of(model)
    (features, labels), (val, val_labels), (test, test_labels) = (lopsided(seed, 800, width) for seed in range(3))
    train_head(model, [features], labels, val, val_labels, plan(**settings), seed=0)
    return float(balanced_accuracy_score(test_labels, classify_embeddings(model, test).argmax(1).numpy()))


def test_corrections_improve_macro_recall() -> None:
    plain = macro_recall()
    corrected = {name: macro_recall(**{name: value}) for name, value in CORRECTIONS.items()}
    assert min(corrected.values()) > plain + 0.1, (plain, corrected)


CORRECTIONS = {"sampler": "balanced", "class_weights": "balanced", "logit_adjustment": 1.0}


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_head_search_corrects_in_its_logistic_regression(name: str) -> None:
    """A sampler has no meaning for a fit to all images: it weighs the classes, as scikit-learn's `class_weight="balanced"` does."""
    model = network()
    width = width_of(model)
    (features, labels), (val, val_labels) = (lopsided(seed, 300, width) for seed in range(2))
    search = search_head(
        model, ("linear",), lambda _: Features([features], val), labels, val_labels, plan(epochs=1, **{name: CORRECTIONS[name]}), seed=0
    )
    (trial,) = (trial for trial in search.trials if trial.l2 == 0.1)
    mean, spread = features.mean(0), features.std(0)
    inputs, others = (features - mean) / spread, (val - mean) / spread
    peer = LogisticRegression(
        C=2 / (len(labels) * 0.1), class_weight=None if name == "logit_adjustment" else "balanced", max_iter=10_000, tol=1e-10
    ).fit(inputs, labels)
    prior = np.log(np.bincount(labels) / len(labels)) if name == "logit_adjustment" else np.zeros(2)
    difference = peer.decision_function(others) - (prior[1] - prior[0])
    assert trial.val_top1 == pytest.approx(((difference > 0) == (val_labels == 1)).mean(), abs=0.011)
    assert trial.val_loss == pytest.approx(np.logaddexp(0, np.where(val_labels == 1, -difference, difference)).mean(), abs=2e-3)


# ---- settings


def test_the_objective_is_that_of_the_plan() -> None:
    labels = np.array([0] * 9 + [1])
    device = torch.device("cpu")
    focal = objective_of(0.1, plan(loss="focal"), labels, 2, device)
    assert (focal.focal_gamma, focal.class_weights, focal.logit_offsets) == (2.0, None, None)
    assert objective_of(0.1, plan(loss="focal", focal_gamma=0.5), labels, 2, device).focal_gamma == 0.5
    adjusted = objective_of(0, plan(logit_adjustment=2.0), labels, 2, device).logit_offsets
    assert adjusted is not None
    np.testing.assert_allclose(adjusted.numpy(), 2 * np.log([0.9, 0.1]), rtol=1e-6)
    assert objective_of(0, plan(class_weights="balanced"), labels, 2, device).class_weights is not None
    np.testing.assert_allclose(balanced_weights(labels, 2).numpy(), [10 / 18, 5], rtol=1e-6)


def test_the_focal_loss_has_no_label_smoothing_unless_it_is_set() -> None:
    assert plan(mode="full").full_label_smoothing == 0.1
    assert plan(mode="full", loss="focal").full_label_smoothing == 0
    assert plan(mode="full", loss="focal", label_smoothing=0.05).full_label_smoothing == 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"sampler": "balanced", "class_weights": "balanced"},
            "--sampler balanced cannot be combined with --class-weights balanced: each corrects for the sizes of the classes, and both"
            " correct twice: use only one of them",
        ),
        ({"sampler": "balanced", "logit_adjustment": 1.0}, "--sampler balanced cannot be combined with --logit-adjustment 1: each"),
        (
            {"class_weights": "balanced", "logit_adjustment": 0.5},
            "--class-weights balanced cannot be combined with --logit-adjustment 0.5:",
        ),
        ({"focal_gamma": 1.0}, "--focal-gamma 1 needs --loss focal: add --loss focal, or leave --focal-gamma out"),
        ({"loss": "focal", "head_search": True}, "--head-search cannot be combined with --loss focal: its logistic regression needs a"),
    ],
)
def test_contradictions_are_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        plan(**settings)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
