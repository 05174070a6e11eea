"""Grid search over heads and their hyperparameters, on cached features."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from tlcli.contract.errors import SettingsError
from tlcli.contract.files.atomic_file import whole_file
from tlcli.training.engine.checkpoint import State
from tlcli.training.engine.ema import snapshot
from tlcli.training.engine.head import Embeddings, Labels, StandardisedHead, Weights, chunks, moments, train_head
from tlcli.training.engine.logistic_regression import fit_logistic
from tlcli.training.engine.loss import balanced_weights, single_label_objective
from tlcli.training.engine.model_selection import is_better
from tlcli.training.engine.stage import Best
from tlcli.training.metrics.scores import EpochRow, loss_and_top1
from tlcli.training.models.network import Network, apply_classifier, build
from tlcli.training.settings.plan import Plan

LR_FACTORS = (1.0, 1 / 3, 3.0)
"""Multiples of the plan's learning rate to try. The plan's own settings come first, so they are kept unless others are better."""

WEIGHT_DECAYS = (0.05, 5.0)

HIDDEN_UNITS = (256, 512)

STRENGTHS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.001)
"""Strengths of the L2 penalty to try, for features of variance 1."""


class Features(NamedTuple):
    """Input features of a head.

    views: embeddings of the training part, `[n, d]` each. val: embeddings of the validation part, `[m, d]`.
    """

    views: Sequence[Embeddings]
    val: Embeddings


@dataclass(frozen=True)
class Trial:
    """Trial of one head with one set of hyperparameters: a row of the search table.

    head: see `FinetuneConfig`. method: name of the optimizer, or `lbfgs`. lr, weight_decay: hyperparameters of the optimizer; None for
    `lbfgs`. l2: strength of the L2 penalty for `lbfgs`; None for other optimizers.
    epoch: best epoch; 1 for `lbfgs`. val_top1, val_loss: validation metrics of the best epoch.
    """

    head: str
    method: str
    lr: float | None
    weight_decay: float | None
    l2: float | None
    epoch: int
    val_top1: float
    val_loss: float

    def __str__(self) -> str:
        how = f"L2 {self.l2:g}" if self.l2 is not None else f"lr {self.lr:.3g}, weight decay {self.weight_decay:g}"
        return f"{self.head}, {self.method}, {how}: validation top-1 {self.val_top1:.2%}, loss {self.val_loss:.4f}"


@dataclass(frozen=True, eq=False)
class HeadSearch:
    """Result of a head search.

    network: network with the weights of the chosen head: the original network, or a copy with a different head.
    best: training result of the chosen head, as returned by `train_head`.
    chosen: best of `trials`.
    trials: all trials in the order they were run.
    """

    network: Network
    best: Best
    chosen: Trial
    trials: tuple[Trial, ...]


def heads_to_try(head: str) -> tuple[str, ...]:
    """Return the configured head, followed by alternatives that use the same features.

    For `mlp` heads, the alternatives have other numbers of hidden units; other heads have none.
    """
    others = [f"mlp:{units}" for units in HIDDEN_UNITS] if head.startswith("mlp:") else []
    return tuple(dict.fromkeys((head, *others)))


def search_size(heads: Sequence[str], plan: Plan) -> int:
    """Return the maximum number of trials that `search_head` runs."""
    return sum(len(_grid(plan)) + (0 if head.startswith("mlp:") else len(STRENGTHS)) for head in heads)


def search_head(
    network: Network,
    heads: Sequence[str],
    features: Callable[[Network], Features],
    labels: Labels,
    val_labels: Labels,
    plan: Plan,
    seed: int,
    on_trial: Callable[[Trial], None] = lambda _: None,
    weights: Weights | None = None,
) -> HeadSearch:
    """Train each head with several settings and select the best by `tlcli.training.engine.model_selection` on the validation part.

    Every head is trained with the plan's optimizer at several learning rates and weight decays. A head that is a single linear layer is
    also fitted to convergence with L-BFGS, at several strengths of the L2 penalty; in place of balanced samples, it weighs the classes.
    Each trial that uses the plan's optimizer is
    bit-identical to `train_head` with the same settings.

    Args:
        network: network to search a head for. Its backbone does not change; its classifier ends with the best weights for its own head.
        heads: heads to try, which need not include `network.config.head`.
        features: function that returns the features for a network with one of the heads, see `FeatureCache`; called once per head.
        labels: labels of the training part, int64 `[n]`.
        val_labels: labels of the validation part, int64 `[m]`.
        plan: training plan, of which the head settings are used; its `head_lr` and `weight_decay` are tried first.
        seed: seed for the image order, dropout, and the initial weights of other heads.
        on_trial: callback after each trial.
        weights: weights of the training images in the loss, `[n]`; None if all weigh the same.

    Raises:
        SettingsError: the loss of every trial was NaN or infinite, or `with_head` rejects a head.
    """
    trials: list[Trial] = []
    search: HeadSearch | None = None
    highest = 0.0
    for head in heads:
        candidate = with_head(network, head, seed)
        best: _Fit | None = None
        highest_of_head = 0.0
        for fit in _fits(candidate, features(candidate), labels, val_labels, plan, seed, weights):
            trials.append(fit.trial)
            on_trial(fit.trial)
            if is_better(fit.trial, None if best is None else best.trial, highest_of_head, len(val_labels)):
                best = fit
            highest_of_head = max(highest_of_head, fit.trial.val_top1)
        if best is None:
            continue
        candidate.classifier.load_state_dict(best.state)
        if is_better(best.trial, None if search is None else search.chosen, highest, len(val_labels)):
            search = HeadSearch(candidate, best.best, best.trial, ())
        highest = max(highest, best.trial.val_top1)
    if search is None:
        raise SettingsError("the loss of every head became NaN or infinite: use a smaller --lr")
    return replace(search, trials=tuple(trials))


def with_head(network: Network, head: str, seed: int) -> Network:
    """Return the network itself if it already has this head, otherwise a copy with a randomly initialised head.

    Args:
        network: network to copy. If its head is `mlp:<units>`, it may lack layers that `linear` needs.
        head: see `FinetuneConfig`.
        seed: seed of the random weights.

    Raises:
        SettingsError: the network lacks layers that the head needs.
    """
    config = network.config
    if head == config.head:
        return network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        changed = build(config.model_copy(update={"head": head}))
    weights = network.backbone.state_dict()
    of_head = {id(tensor) for tensor in changed.classifier.parameters()}
    needed = {name for name, tensor in changed.backbone.state_dict(keep_vars=True).items() if id(tensor) not in of_head}
    if needed - weights.keys():
        raise SettingsError(
            f"{config.backbone} with --head {config.head} lacks layers that the head {head!r} needs: start with --head {head}"
        )
    changed.backbone.load_state_dict({name: weights[name] for name in needed}, strict=False)
    return changed.to(next(network.parameters()).device).train(network.training)


def write_search(path: Path, trials: Sequence[Trial]) -> None:
    """Write the trials to a CSV file, one per row."""
    names = [field.name for field in fields(Trial)]
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(names)
        writer.writerows([getattr(trial, name) for name in names] for trial in trials)


class _Fit(NamedTuple):
    """Trained head of one trial.

    best: training result. state: weights of the network's classifier.
    """

    trial: Trial
    best: Best
    state: State


def _fits(
    network: Network, features: Features, labels: Labels, val_labels: Labels, plan: Plan, seed: int, weights: Weights | None
) -> Iterator[_Fit]:
    first = snapshot(network.classifier)
    for lr, weight_decay in _grid(plan):
        network.classifier.load_state_dict(first)
        setting = plan.model_copy(update={"head_lr": lr, "weight_decay": weight_decay})
        try:
            best = train_head(network, features.views, labels, features.val, val_labels, setting, seed, weights=weights)
        except SettingsError:  # the loss diverged in the first epoch because the learning rate is too high
            continue
        row = best.kept
        trial = Trial(network.config.head, plan.config.optimizer, lr, weight_decay, None, row.epoch, row.val_top1, row.val_loss)
        yield _Fit(trial, best, snapshot(network.classifier))
    if isinstance(network.classifier, (nn.Linear, nn.Conv2d)):
        yield from _logistic_fits(network, features, labels, val_labels, plan, weights)


def _grid(plan: Plan) -> list[tuple[float, float]]:
    """Return the pairs of learning rate and weight decay to try, starting with the plan's own."""
    decays = dict.fromkeys((plan.weight_decay, *WEIGHT_DECAYS))
    return [(plan.head_lr * factor, decay) for factor in LR_FACTORS for decay in decays]


def _logistic_fits(
    network: Network, features: Features, labels: Labels, val_labels: Labels, plan: Plan, weights: Weights | None
) -> Iterator[_Fit]:
    layer = cast("nn.Linear | nn.Conv2d", network.classifier)
    device = layer.weight.device
    mean, spread = moments(features.views)
    centre = mean if layer.bias is not None else torch.zeros_like(mean)
    rows = torch.cat([(chunk.double() - centre) / spread for view in features.views for chunk in chunks(view)]).to(device)
    targets = torch.from_numpy(labels).to(device).repeat(len(features.views))
    classes = network.config.num_classes
    objective = single_label_objective(plan.head_label_smoothing, plan, labels, classes, device)
    if plan.config.sampler == "balanced":  # a fit to all images has no sampler: the weights are what balanced samples have in the mean
        objective = replace(objective, class_weights=balanced_weights(labels, classes).to(device))
    objective = objective.double()
    repeated = None if weights is None else torch.from_numpy(weights).double().to(device).repeat(len(features.views))
    for fitted in fit_logistic(rows, targets, classes, STRENGTHS, objective, layer.bias is not None, repeated):
        with torch.no_grad():
            layer.weight.copy_(fitted.weight.view_as(layer.weight))
            if layer.bias is not None:
                layer.bias.copy_(fitted.bias)
            top1 = float(((rows @ fitted.weight.t() + fitted.bias).argmax(1) == targets).double().mean())
        StandardisedHead(layer, mean, spread).to(device).fold()
        val_loss, val_top1 = loss_and_top1(_logits(layer, features.val), torch.from_numpy(val_labels).to(device))
        if not math.isfinite(val_loss):
            continue
        trial = Trial(network.config.head, "lbfgs", None, None, fitted.l2, 1, val_top1, val_loss)
        state = snapshot(layer)
        row = EpochRow("head", 1, 0.0, fitted.loss, top1, val_loss, val_top1, 0.0)
        yield _Fit(trial, Best(state, len(val_labels), row, rows=[row]), state)


@torch.no_grad()
def _logits(classifier: nn.Module, embeddings: Embeddings) -> Tensor:
    device = next(classifier.parameters()).device
    return torch.cat([apply_classifier(classifier, rows.to(device)) for rows in chunks(embeddings)])
