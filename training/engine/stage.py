"""A stage of training: epochs of minibatches, validation after each, the best weights kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from tlcli.contract.errors import SettingsError
from tlcli.training.engine.ema import Average, State, snapshot
from tlcli.training.engine.model_selection import is_better
from tlcli.training.engine.optimizer import rate_factor
from tlcli.training.engine.step import Steps, Way
from tlcli.training.engine.unfreezing import GradualUnfreezing, frozen_norms
from tlcli.training.metrics.scores import EpochRow
from tlcli.training.metrics.scores import Stage as StageName
from tlcli.training.settings.config import Schedule

Batches = Iterable[tuple[Tensor, Tensor]]
"""Inputs of the stage's model and their labels, int64 `[N]`, on its device."""


def _unheard(*_: object) -> None:
    pass


@dataclass(frozen=True, eq=False)
class Stage:
    """What is trained, on what, how long.

    model: its weights are trained and kept. It is in training mode while it trains, and in eval mode otherwise.
    optimizer: over the model's parameters; the highest of its groups' rates is reported.
    batches: of an epoch, from 0. steps: how many those are.
    evaluate: the model's validation loss and top-1.
    warm_up, schedule: see `tlcli.training.engine.optimizer.rate_factor`.
    kept_in_eval: modules of it that stay in eval mode while it trains.
    way: how each step is taken.
    patience: epochs without a better one after which it ends.
    unfreezing: which layers learn in which epoch; None for all in all.
    on_step: told of each step's number, from 1 in the stage, and mean loss. say: told what a user must know.
    """

    name: StageName
    model: nn.Module
    optimizer: Optimizer
    batches: Callable[[int], Batches]
    steps: int
    evaluate: Callable[[], tuple[float, float]]
    epochs: int
    warm_up: float
    schedule: Schedule = "cosine"
    kept_in_eval: Sequence[nn.Module] = ()
    way: Way = Way()  # noqa: RUF009  # immutable
    patience: int | None = None
    unfreezing: GradualUnfreezing | None = None
    on_step: Callable[[int, float], None] = _unheard
    say: Callable[[str], None] = _unheard


@dataclass
class Best:
    """The best epoch so far, see `tlcli.training.engine.model_selection`.

    state: the model's weights after it. val_count: validation images. row: its figures, None before there is one.
    rows: of every epoch.
    stopped: why training cannot go on. ended: why it had no need to.
    """

    state: State
    val_count: int
    row: EpochRow | None = None
    stopped: str | None = None
    ended: str | None = None
    rows: list[EpochRow] = field(default_factory=list)

    @property
    def kept(self) -> EpochRow:
        """`row`, once `run_stage` has returned."""
        assert self.row is not None
        return self.row

    def note(self, row: EpochRow, model: nn.Module) -> bool:
        """Keep the model's weights if `row` is the best so far, and answer whether it is."""
        highest = max((one.val_top1 for one in self.rows), default=0.0)
        self.rows.append(row)
        if not is_better(row, self.row, highest, self.val_count):
            return False
        self.row, self.state = row, snapshot(model)
        return True


@dataclass(frozen=True, eq=False)
class Position:
    """Where a stage is between two epochs, for it to be gone on with: all that the next epoch depends on.

    epochs: that are done. optimizer, scale: as their `state_dict` has them. average: of the weights, if one is made.
    """

    epochs: int
    model: State
    optimizer: dict[str, Any]
    average: State | None
    scale: dict[str, float]


def run_stage(
    stage: Stage,
    best: Best,
    on_epoch: Callable[[EpochRow, bool], None],
    begin: Position | None = None,
    keep: Callable[[Position], None] = _unheard,
) -> None:
    """Train `stage`; the model ends with the weights of the best epoch, which may be one that `best` held before.

    Args:
        stage: see there.
        best: what is known so far; told of every epoch. If the loss stops being a number, `best.stopped` says so.
        on_epoch: called after each epoch with its row and whether it is the best so far.
        begin: where it is, if it is gone on with.
        keep: called after each epoch, before `on_epoch`; what it is given changes when the next begins.

    Raises:
        SettingsError: the loss was no number before a single epoch was good; see `Steps.take`.
    """
    _Running(stage, best, begin).run(on_epoch, keep)
    if best.row is None:
        raise SettingsError(best.stopped or f"the stage {stage.name!r} has no epochs")
    stage.model.load_state_dict(best.state)


class _Running:
    """A stage under way."""

    def __init__(self, stage: Stage, best: Best, begin: Position | None) -> None:
        self._stage = stage
        self._best = best
        self._first = 0 if begin is None else begin.epochs
        self._before = len(best.rows) - self._first
        self._steps = Steps(stage.model, stage.optimizer, stage.way, stage.say)
        for group in stage.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        if begin is not None:
            stage.model.load_state_dict(begin.model)
            stage.optimizer.load_state_dict(begin.optimizer)
            if stage.way.precision is not None:
                stage.way.precision.restore(begin.scale)
        decay = stage.way.average
        self._average = None if decay is None else Average(stage.model, decay, None if begin is None else begin.average)

    def run(self, on_epoch: Callable[[EpochRow, bool], None], keep: Callable[[Position], None]) -> None:
        stage, best = self._stage, self._best
        for epoch in range(self._first, stage.epochs):
            if self._is_idle(epoch):
                best.ended = f"no better epoch in {stage.patience} (--patience): training ends after epoch {best.rows[-1].epoch}"
                break
            row, is_best = self._epoch(epoch)
            if best.stopped is not None:
                break
            keep(self._position(epoch + 1))
            on_epoch(row, is_best)
        if stage.unfreezing is not None:
            stage.unfreezing.finish()

    def _is_idle(self, epoch: int) -> bool:
        best, patience = self._best.row, self._stage.patience
        return patience is not None and best is not None and self._before + epoch - max(best.epoch, self._before) >= patience

    def _epoch(self, epoch: int) -> tuple[EpochRow, bool]:
        """Train on every batch once, or until the loss is no number; then validate."""
        stage, best = self._stage, self._best
        began = time.perf_counter()
        if stage.unfreezing is not None:
            stage.unfreezing.begin(epoch)
        if stage.unfreezing is not None or epoch == self._first:
            self._steps.begin()
        stage.model.train()
        for module in (*stage.kept_in_eval, *(frozen_norms(stage.model) if stage.unfreezing else ())):
            module.eval()
        lr, train_loss, train_top1 = self._train(epoch)
        stage.model.eval()
        with nullcontext() if self._average is None else self._average.in_place():
            val_loss, val_top1 = stage.evaluate() if math.isfinite(train_loss) else (math.nan, 0.0)
            seconds = time.perf_counter() - began
            row = EpochRow(stage.name, self._before + epoch + 1, lr, train_loss, train_top1, val_loss, val_top1, seconds)
            if not math.isfinite(train_loss + val_loss):
                peak = max(group["initial_lr"] for group in stage.optimizer.param_groups)
                best.stopped = f"the loss was no number any more in epoch {row.epoch}: try a smaller --lr than {peak:g}"
                return row, False
            return row, best.note(row, stage.model)

    def _train(self, epoch: int) -> tuple[float, float, float]:
        """The highest rate, the mean loss and the share of right answers."""
        stage = self._stage
        highest = loss = right = 0.0
        count = 0
        for number, (inputs, labels) in enumerate(stage.batches(epoch), start=epoch * stage.steps):
            factor = rate_factor(stage.schedule, number, stage.epochs * stage.steps, stage.warm_up)
            for group in stage.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
                highest = max(highest, group["lr"])
            stepped = self._steps.take(number, inputs, labels)
            stage.on_step(number + 1, stepped.loss / stepped.count)
            loss, right, count = loss + stepped.loss, right + stepped.right, count + stepped.count
            if not stepped.finite:
                break
            if self._average is not None:
                self._average.update(number)
        return highest, loss / count, right / count

    def _position(self, epochs: int) -> Position:
        stage, average = self._stage, self._average
        scale = {} if stage.way.precision is None else stage.way.precision.state()
        return Position(epochs, stage.model.state_dict(), stage.optimizer.state_dict(), None if average is None else average.state, scale)
