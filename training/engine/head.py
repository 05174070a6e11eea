"""Training of the head alone on cached features. Training on minibatches of standardised embeddings takes seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tlcli.training.data.dataloader import batch_count
from tlcli.training.engine.callbacks import Callback
from tlcli.training.engine.ema import snapshot
from tlcli.training.engine.loss import objective_of
from tlcli.training.engine.optimizer import decayed_groups, make_optimizer
from tlcli.training.engine.sampling import epoch_order
from tlcli.training.engine.stage import Batch, Batches, Best, Stage, run_stage
from tlcli.training.engine.step import StepOptions
from tlcli.training.metrics.scores import Validation, validate
from tlcli.training.models.network import Network, apply_classifier
from tlcli.training.settings.plan import Plan

Embeddings = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]

_CHUNK = 4096
"""Maximum number of embedding rows to load into memory at once."""

_LEAST_SPREAD = 1e-4
"""Threshold on a feature's standard deviation, relative to the mean over all features.

A feature at or below it is treated as constant and is not scaled up.
"""


class StandardisedHead(nn.Module):
    """Classifier that standardises its input features to mean 0 and standard deviation 1 during training.

    Standardisation makes optimizer steps similar in size in all directions. `fold` then merges it into the first layer of the classifier,
    so that the trained classifier needs no extra layer: with `z = (x - m) / s`, `W z + b = (W / s) x + (b - (W / s) m)`.
    """

    def __init__(self, classifier: nn.Module, mean: Tensor, spread: Tensor) -> None:
        """Wrap the classifier of a `Network`.

        Args:
            classifier: classifier to train.
            mean: mean of the embeddings, float64 `[d]`.
            spread: standard deviation of the embeddings, float64 `[d]`.
        """
        super().__init__()
        self.classifier = classifier
        if self._first.bias is None:  # without a bias, the mean cannot be folded in
            mean = torch.zeros_like(mean)
        self.register_buffer("mean", mean.float(), persistent=False)
        self.register_buffer("spread", spread.float(), persistent=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map embeddings `[N, d]` to logits `[N, C]`."""
        return apply_classifier(self.classifier, (embeddings - cast("Tensor", self.mean)) / cast("Tensor", self.spread))

    @torch.no_grad()
    def fold(self) -> None:
        """Fold the standardisation into the classifier, so that it maps raw embeddings to the same logits. Computed in float64."""
        first = self._first
        weight = first.weight.flatten(1).double() / cast("Tensor", self.spread).double()
        if first.bias is not None:
            first.bias.copy_(first.bias.double() - weight @ cast("Tensor", self.mean).double())
        first.weight.copy_(weight.view_as(first.weight))

    @torch.no_grad()
    def unfold(self) -> None:
        """Change a classifier of raw embeddings so that this head computes the same logits: the inverse of `fold`."""
        first = self._first
        weight = first.weight.flatten(1).double()
        if first.bias is not None:
            first.bias.copy_(first.bias.double() + weight @ cast("Tensor", self.mean).double())
        first.weight.copy_((weight * cast("Tensor", self.spread).double()).view_as(first.weight))

    @property
    def _first(self) -> nn.Linear | nn.Conv2d:
        return cast("nn.Linear | nn.Conv2d", self.classifier[0] if isinstance(self.classifier, nn.Sequential) else self.classifier)


def train_head(
    network: Network,
    views: Sequence[Embeddings],
    labels: Labels,
    val: Embeddings,
    val_labels: Labels,
    plan: Plan,
    seed: int,
    callback: Callback | None = None,
    weights: Weights | None = None,
) -> Best:
    """Train `network.classifier` on embeddings. The rest of the network does not change.

    A run that starts from another one begins with the weights of the classifier, and any other run of a single layer with zeros.

    Args:
        network: network whose classifier is trained; it ends with the weights of the best epoch.
        views: embeddings of the training part, `[n, d]` each; epoch e trains on view `e % len(views)`.
        labels: labels of the training part, `[n]`, or `[n, C]` with several labels per image.
        val: embeddings of the validation part, `[m, d]`.
        val_labels: labels of the validation part, `[m]` or `[m, C]`.
        plan: training plan, of which the head settings are used.
        seed: seed for the image order and dropout.
        callback: hooks to run after each step and each epoch.
        weights: weights of the training images in the loss, `[n]`; None if all weigh the same.

    Returns:
        The best epoch, with the metrics of every epoch.

    Raises:
        SettingsError: the loss became NaN or infinite in the first epoch; see also `run_stage`.
    """
    device = network.device
    mean, spread = moments(views)
    head = StandardisedHead(network.classifier, mean, spread).to(device)
    targets, val_targets = torch.from_numpy(labels), torch.from_numpy(val_labels).to(device)
    steps = batch_count(len(labels), plan.config.batch_size)

    def batches(epoch: int) -> Batches:
        view = views[epoch % len(views)]
        order = epoch_order(plan.config.sampler, labels, seed, epoch)
        for chosen in np.array_split(order, steps):
            own = None if weights is None else torch.from_numpy(weights[chosen]).to(device)
            yield Batch(torch.from_numpy(view[chosen]).to(device), targets[chosen].to(device), own)

    @torch.no_grad()
    def evaluate() -> Validation:
        return validate(torch.cat([head(rows.to(device)) for rows in chunks(val)]), val_targets)

    if plan.config.from_run is not None:
        head.unfold()
    elif isinstance(network.classifier, (nn.Linear, nn.Conv2d)):  # the problem is convex, so no random initialization is better than zero
        nn.init.zeros_(network.classifier.weight)
        if network.classifier.bias is not None:
            nn.init.zeros_(network.classifier.bias)
    head.eval()
    best = Best(snapshot(head), len(val_labels))
    objective = objective_of(plan.head_label_smoothing, plan, labels, network.config.num_classes, device)
    stage = Stage(
        name="head",
        model=head,
        optimizer=make_optimizer(plan.config.optimizer, decayed_groups(head, plan.head_lr, plan.weight_decay), plan.head_lr),
        batches=batches,
        steps=steps,
        evaluate=evaluate,
        epochs=plan.head_epochs,
        warm_up=0.0,
        schedule=plan.config.schedule,
        options=StepOptions(objective=objective, seed=seed),
        patience=plan.config.patience,
    )
    run_stage(stage, best, callback)
    head.fold()
    return best


@torch.no_grad()
def classify_embeddings(network: Network, embeddings: Embeddings) -> Tensor:
    """Map embeddings `[n, d]` to logits `[n, C]` on the CPU. The network keeps its current train or eval mode."""
    return torch.cat([network.classify(rows.to(network.device)).cpu() for rows in chunks(embeddings)])


def chunks(embeddings: Embeddings) -> Iterator[Tensor]:
    """Yield the rows of embeddings `[n, d]` in chunks of up to 4096, copied into memory."""
    for start in range(0, len(embeddings), _CHUNK):
        yield torch.from_numpy(np.array(embeddings[start : start + _CHUNK]))


def moments(views: Sequence[Embeddings]) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of each feature over all views, float64 `[d]`.

    The computation takes two passes over the data, because a one-pass formula suffers from cancellation. For a constant feature, the
    standard deviation is replaced by the mean over all features.
    """
    count = sum(len(view) for view in views)
    mean = sum((rows.double().sum(0) for view in views for rows in chunks(view)), torch.zeros(())) / count
    variance = sum(((rows.double() - mean).square().sum(0) for view in views for rows in chunks(view)), torch.zeros(())) / count
    spread = variance.sqrt()
    usual = spread.mean().clamp_min(torch.finfo(torch.float32).tiny)
    return mean, spread.where(spread > _LEAST_SPREAD * usual, usual)
