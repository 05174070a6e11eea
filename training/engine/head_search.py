"""Trying out heads, and settings to train them with, on features that are computed once."""

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
from tlcli.training.engine.ema import State, snapshot
from tlcli.training.engine.head import Embeddings, Labels, StandardisedHead, chunks, moments, train_head
from tlcli.training.engine.logistic_regression import fit_logistic
from tlcli.training.engine.loss import objective_of
from tlcli.training.engine.model_selection import is_better
from tlcli.training.engine.stage import Best
from tlcli.training.metrics.scores import EpochRow, loss_and_top1
from tlcli.training.models.network import Network, apply_classifier, build
from tlcli.training.settings.plan import Plan

LR_FACTORS = (1.0, 1 / 3, 3.0)
"""Of the plan's rate. The plan's own settings come first, so they are kept where nothing is better."""

WEIGHT_DECAYS = (0.05, 5.0)

HIDDEN_UNITS = (256, 512)

STRENGTHS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.001)
"""Of the L2 penalty, on features of variance 1."""


class Features(NamedTuple):
    """What a head sees. views: of the training part, `[n, d]` each. val: of the validation part, `[m, d]`."""

    views: Sequence[Embeddings]
    val: Embeddings


@dataclass(frozen=True)
class Tried:
    """One line of the search's table.

    head: see `FinetuneConfig`. method: the optimizer, or `lbfgs`. lr, weight_decay: of an optimizer. l2: of `lbfgs`.
    epoch: the best one; 1 for `lbfgs`. val_top1, val_loss: of the validation part, after it.
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
class Searched:
    """What was found.

    network: with the chosen head and its weights: the one that came, or for another head a copy.
    best: the epochs that the chosen head was trained for, as `train_head` returns it.
    chosen: one of `tried`, which are in the order of trying.
    """

    network: Network
    best: Best
    chosen: Tried
    tried: tuple[Tried, ...]


def heads_to_try(head: str) -> tuple[str, ...]:
    """The one that was asked for, first, and others that learn from the same features: for `mlp` other numbers of units."""
    others = [f"mlp:{units}" for units in HIDDEN_UNITS] if head.startswith("mlp:") else []
    return tuple(dict.fromkeys((head, *others)))


def search_size(heads: Sequence[str], plan: Plan) -> int:
    """How many settings `search_head` tries, at most."""
    return sum(len(_grid(plan)) + (0 if head.startswith("mlp:") else len(STRENGTHS)) for head in heads)


def search_head(
    network: Network,
    heads: Sequence[str],
    features: Callable[[Network], Features],
    labels: Labels,
    val_labels: Labels,
    plan: Plan,
    seed: int,
    on_tried: Callable[[Tried], None] = lambda _: None,
) -> Searched:
    """Train heads in several ways, and keep the one that is best on the validation part, see `tlcli.training.engine.model_selection`.

    Every head is trained by the plan's optimizer at several rates and weight decays; what is one linear layer also by L-BFGS
    to the end, at several strengths of an L2 penalty. A trained setting gives what `train_head` gives with it, to the bit.

    Args:
        network: its backbone is not changed; its classifier ends with the best weights found for its own head.
        heads: to try; `network.config.head` is one of them, or none.
        features: of a network with one of the heads, see `FeatureCache`. Called once a head.
        labels: int64 `[n]`.
        val_labels: int64 `[m]`.
        plan: what it says of the head; `head_lr` and `weight_decay` are the first of those tried.
        seed: of the order of the images, of dropout, and of another head's first weights.
        on_tried: told of each setting.

    Raises:
        SettingsError: no setting has a loss that is a number; or see `with_head`.
    """
    tried: list[Tried] = []
    found: Searched | None = None
    highest = 0.0
    for head in heads:
        candidate = with_head(network, head, seed)
        best: _Fit | None = None
        highest_of_head = 0.0
        for fit in _fits(candidate, features(candidate), labels, val_labels, plan, seed):
            tried.append(fit.tried)
            on_tried(fit.tried)
            if is_better(fit.tried, None if best is None else best.tried, highest_of_head, len(val_labels)):
                best = fit
            highest_of_head = max(highest_of_head, fit.tried.val_top1)
        if best is None:
            continue
        candidate.classifier.load_state_dict(best.state)
        if is_better(best.tried, None if found is None else found.chosen, highest, len(val_labels)):
            found = Searched(candidate, best.best, best.tried, ())
        highest = max(highest, best.tried.val_top1)
    if found is None:
        raise SettingsError("the loss of every head that was tried was no number: try a smaller --lr")
    return replace(found, tried=tuple(tried))


def with_head(network: Network, head: str, seed: int) -> Network:
    """The network itself if it has that head, else another of the same backbone, whose head has random weights.

    Args:
        network: one with the head `mlp:<units>` may have lost layers that `linear` needs.
        head: see `FinetuneConfig`.
        seed: of the random weights.

    Raises:
        SettingsError: the network has lost what the head needs.
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
        raise SettingsError(f"{config.backbone} with the head {config.head!r} cannot be given the head {head!r}: begin with that one")
    changed.backbone.load_state_dict({name: weights[name] for name in needed}, strict=False)
    return changed.to(next(network.parameters()).device).train(network.training)


def write_search(path: Path, tried: Sequence[Tried]) -> None:
    """The table as CSV."""
    names = [field.name for field in fields(Tried)]
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(names)
        writer.writerows([getattr(one, name) for name in names] for one in tried)


class _Fit(NamedTuple):
    """state: of the network's classifier."""

    tried: Tried
    best: Best
    state: State


def _fits(network: Network, features: Features, labels: Labels, val_labels: Labels, plan: Plan, seed: int) -> Iterator[_Fit]:
    first = snapshot(network.classifier)
    for lr, weight_decay in _grid(plan):
        network.classifier.load_state_dict(first)
        setting = plan.model_copy(update={"head_lr": lr, "weight_decay": weight_decay})
        try:
            best = train_head(network, features.views, labels, features.val, val_labels, setting, seed, lambda row, is_best: None)
        except SettingsError:  # the rate is too high for the first epoch
            continue
        row = best.kept
        tried = Tried(network.config.head, plan.config.optimizer, lr, weight_decay, None, row.epoch, row.val_top1, row.val_loss)
        yield _Fit(tried, best, snapshot(network.classifier))
    if isinstance(network.classifier, (nn.Linear, nn.Conv2d)):
        yield from _logistic_fits(network, features, labels, val_labels, plan)


def _grid(plan: Plan) -> list[tuple[float, float]]:
    """Rates and weight decays, the plan's own first."""
    decays = dict.fromkeys((plan.weight_decay, *WEIGHT_DECAYS))
    return [(plan.head_lr * factor, decay) for factor in LR_FACTORS for decay in decays]


def _logistic_fits(network: Network, features: Features, labels: Labels, val_labels: Labels, plan: Plan) -> Iterator[_Fit]:
    layer = cast("nn.Linear | nn.Conv2d", network.classifier)
    device = layer.weight.device
    mean, spread = moments(features.views)
    centre = mean if layer.bias is not None else torch.zeros_like(mean)
    rows = torch.cat([(chunk.double() - centre) / spread for view in features.views for chunk in chunks(view)]).to(device)
    targets = torch.from_numpy(labels).to(device).repeat(len(features.views))
    objective = objective_of(plan.head_label_smoothing, plan, labels, network.config.num_classes, device)
    if objective.class_weights is not None:
        objective = replace(objective, class_weights=objective.class_weights.double())
    for fitted in fit_logistic(rows, targets, network.config.num_classes, STRENGTHS, objective, layer.bias is not None):
        with torch.no_grad():
            layer.weight.copy_(fitted.weight.view_as(layer.weight))
            if layer.bias is not None:
                layer.bias.copy_(fitted.bias)
            top1 = float(((rows @ fitted.weight.t() + fitted.bias).argmax(1) == targets).double().mean())
        StandardisedHead(layer, mean, spread).to(device).fold()
        val_loss, val_top1 = loss_and_top1(_logits(layer, features.val), torch.from_numpy(val_labels).to(device))
        if not math.isfinite(val_loss):
            continue
        tried = Tried(network.config.head, "lbfgs", None, None, fitted.l2, 1, val_top1, val_loss)
        state = snapshot(layer)
        row = EpochRow("head", 1, 0.0, fitted.loss, top1, val_loss, val_top1, 0.0)
        yield _Fit(tried, Best(state, len(val_labels), row, rows=[row]), state)


@torch.no_grad()
def _logits(classifier: nn.Module, embeddings: Embeddings) -> Tensor:
    device = next(classifier.parameters()).device
    return torch.cat([apply_classifier(classifier, rows.to(device)) for rows in chunks(embeddings)])
