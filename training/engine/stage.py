"""Training stage: train for several epochs, validate after each one, and keep the best weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from tlcli.contract.errors import SettingsError
from tlcli.training.engine.callbacks import Callback
from tlcli.training.engine.checkpoint import Checkpoint, State
from tlcli.training.engine.ema import EMA, snapshot
from tlcli.training.engine.model_selection import has_higher_mean_ap, is_better
from tlcli.training.engine.optimizer import rate_factor
from tlcli.training.engine.step import Log, StepOptions, Stepper, no_log
from tlcli.training.engine.unfreezing import GradualUnfreezing, frozen_norms
from tlcli.training.metrics.scores import EpochRow, Validation
from tlcli.training.metrics.scores import Stage as StageName
from tlcli.training.settings.config import Schedule


class Batch(NamedTuple):
    """Batch on the device of the model: inputs, labels, int64 `[N]` or `[N, C]`, and weights of the images in the loss, float `[N]`."""

    inputs: Tensor
    labels: Tensor
    weights: Tensor | None = None


Batches = Iterable[Batch]


@dataclass(frozen=True, eq=False)
class Stage:
    """Definition of a training stage: the model, its data and its schedule.

    model: network to train, in training mode during training steps and in eval mode otherwise.
    optimizer: optimizer of the model's parameters; the highest learning rate of its groups is reported.
    batches: function that returns the batches of an epoch, numbered from 0. steps: number of batches per epoch.
    evaluate: function that returns the validation metrics of the model.
    warm_up, schedule: see `tlcli.training.engine.optimizer.rate_factor`.
    kept_in_eval: modules of the model that stay in eval mode during training.
    options: options of each step.
    patience: number of epochs without improvement after which the stage ends; None to run all epochs.
    unfreezing: schedule of the layers to train in each epoch; None trains all layers in every epoch.
    log: function that prints a line for the user.
    """

    name: StageName
    model: nn.Module
    optimizer: Optimizer
    batches: Callable[[int], Batches]
    steps: int
    evaluate: Callable[[], Validation]
    epochs: int
    warm_up: float
    schedule: Schedule = "cosine"
    kept_in_eval: Sequence[nn.Module] = ()
    options: StepOptions = StepOptions()  # noqa: RUF009  # immutable
    patience: int | None = None
    unfreezing: GradualUnfreezing | None = None
    log: Log = no_log


@dataclass
class Best:
    """Best epoch so far, as selected by `tlcli.training.engine.model_selection`.

    state: weights of the model after the best epoch. val_count: number of validation images.
    row: metrics of the best epoch; None before the first epoch. rows: metrics of every epoch.
    stopped: reason why training cannot continue. ended: reason why training ended early.
    """

    state: State
    val_count: int
    row: EpochRow | None = None
    stopped: str | None = None
    ended: str | None = None
    rows: list[EpochRow] = field(default_factory=list)

    @property
    def kept(self) -> EpochRow:
        """Metrics of the best epoch. Available after `run_stage` has returned."""
        assert self.row is not None
        return self.row

    def update(self, row: EpochRow, model: nn.Module) -> bool:
        """Record an epoch. If it is the best so far, copy the model's weights and return True."""
        highest = max((earlier.val_top1 for earlier in self.rows), default=0.0)
        self.rows.append(row)
        if row.val_mean_ap is not None:
            if not has_higher_mean_ap(row, self.row):
                return False
        elif not is_better(row, self.row, highest, self.val_count):
            return False
        self.row, self.state = row, snapshot(model)
        return True


def run_stage(stage: Stage, best: Best, callback: Callback | None = None, checkpoint: Checkpoint | None = None) -> None:
    """Run a training stage. Afterwards, the model has the weights of the best epoch, which may belong to an earlier stage.

    Args:
        stage: stage to run.
        best: best epoch of earlier stages, updated after every epoch. If the loss becomes NaN or infinite, `best.stopped` is set.
        callback: hooks to run after each step and each epoch.
        checkpoint: state to resume from; None starts fresh.

    Raises:
        SettingsError: the loss was NaN or infinite before the first epoch ended; see also `Stepper.step`.
    """
    _StageRun(stage, best, callback or Callback(), checkpoint).run()
    if best.row is None:
        raise SettingsError(best.stopped or f"the stage {stage.name!r} has no epochs")
    stage.model.load_state_dict(best.state)


class _StageRun:
    """State of a stage during training."""

    def __init__(self, stage: Stage, best: Best, callback: Callback, checkpoint: Checkpoint | None) -> None:
        self._stage = stage
        self._best = best
        self._callback = callback
        self._first = 0 if checkpoint is None else checkpoint.epochs
        self._before = len(best.rows) - self._first
        """Number of epochs completed in earlier stages."""
        self._stepper = Stepper(stage.model, stage.optimizer, stage.options, stage.log)
        for group in stage.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        if checkpoint is not None:
            stage.model.load_state_dict(checkpoint.model)
            stage.optimizer.load_state_dict(checkpoint.optimizer)
            if stage.options.precision is not None:
                stage.options.precision.restore(checkpoint.scale)
        decay = stage.options.ema
        self._ema = None if decay is None else EMA(stage.model, decay, None if checkpoint is None else checkpoint.average)

    def run(self) -> None:
        stage, best = self._stage, self._best
        for epoch in range(self._first, stage.epochs):
            if self._out_of_patience(epoch):
                best.ended = f"no better epoch in {stage.patience} (--patience): training ends after epoch {best.rows[-1].epoch}"
                break
            row, is_best = self._epoch(epoch)
            if best.stopped is not None:
                break
            self._callback.on_checkpoint(self._checkpoint(epoch + 1))
            self._callback.on_epoch_end(row, is_best)
        if stage.unfreezing is not None:
            stage.unfreezing.finish()

    def _out_of_patience(self, epoch: int) -> bool:
        best, patience = self._best.row, self._stage.patience
        return patience is not None and best is not None and self._before + epoch - max(best.epoch, self._before) >= patience

    def _epoch(self, epoch: int) -> tuple[EpochRow, bool]:
        """Train on every batch once and validate. Training stops early if the loss becomes NaN or infinite."""
        stage, best = self._stage, self._best
        began = time.perf_counter()
        if stage.unfreezing is not None:
            stage.unfreezing.begin(epoch)
        if stage.unfreezing is not None or epoch == self._first:
            self._stepper.begin()
        stage.model.train()
        for module in (*stage.kept_in_eval, *(frozen_norms(stage.model) if stage.unfreezing else ())):
            module.eval()
        lr, train_loss, train_top1 = self._train(epoch)
        stage.model.eval()
        with nullcontext() if self._ema is None else self._ema.applied_to(stage.model):
            val = stage.evaluate() if math.isfinite(train_loss) else Validation(math.nan, 0.0)
            seconds = time.perf_counter() - began
            row = EpochRow(stage.name, self._before + epoch + 1, lr, train_loss, train_top1, val.loss, val.top1, seconds, val.mean_ap)
            if not math.isfinite(train_loss + val.loss):
                peak = max(group["initial_lr"] for group in stage.optimizer.param_groups)
                best.stopped = f"the loss became NaN or infinite in epoch {row.epoch}: use an --lr below {peak:g}"
                return row, False
            return row, best.update(row, stage.model)

    def _train(self, epoch: int) -> tuple[float, float, float]:
        """Train on every batch of an epoch. Return the highest learning rate, the mean loss and the top-1 accuracy."""
        stage = self._stage
        highest = loss = right = 0.0
        count = 0
        for number, (inputs, labels, weights) in enumerate(stage.batches(epoch), start=epoch * stage.steps):
            factor = rate_factor(stage.schedule, number, stage.epochs * stage.steps, stage.warm_up)
            for group in stage.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
                highest = max(highest, group["lr"])
            result = self._stepper.step(number, inputs, labels, weights)
            self._callback.on_step_end(number + 1, result.loss / result.count)
            loss, right, count = loss + result.loss, right + result.right, count + result.count
            if not result.finite:
                break
            if self._ema is not None:
                self._ema.update(stage.model, number)
        return highest, loss / count, right / count

    def _checkpoint(self, epochs: int) -> Checkpoint:
        stage, precision = self._stage, self._stage.options.precision
        return Checkpoint(
            epochs=epochs,
            model=stage.model.state_dict(),
            optimizer=stage.optimizer.state_dict(),
            average=None if self._ema is None else self._ema.state,
            scale={} if precision is None else precision.state(),
        )
