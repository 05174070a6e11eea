"""A stage of training: epochs of minibatches, validation after each, the best weights kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from contract.errors import SettingsError
from training.rates import warm_up_and_cosine
from training.results import EpochRow, loss_and_top1
from training.results import Stage as StageName

Batches = Iterable[tuple[Tensor, Tensor]]
"""Inputs of the stage's model and their labels, int64 `[N]`, on its device."""

State = dict[str, Tensor]


@dataclass(frozen=True)
class Stage:
    """What is trained, on what, how long.

    model: its weights are trained and kept. It is in training mode while it trains, and in eval mode otherwise.
    optimizer: over the model's parameters; the highest of its groups' rates is reported.
    batches: of an epoch, from 0. steps: how many those are.
    evaluate: the model's validation loss and top-1.
    kept_in_eval: modules of it that stay in eval mode while it trains.
    """

    name: StageName
    model: nn.Module
    optimizer: AdamW
    batches: Callable[[int], Batches]
    steps: int
    evaluate: Callable[[], tuple[float, float]]
    epochs: int
    warm_up: float
    label_smoothing: float = 0.0
    kept_in_eval: Sequence[nn.Module] = ()


@dataclass
class Best:
    """The best epoch of a stage: highest validation top-1, ties by loss.

    row: its figures, None before there is one. state: the model's weights after it. stopped: why the stage ended early.
    """

    state: State
    row: EpochRow | None = None
    stopped: str | None = None
    rows: list[EpochRow] = field(default_factory=list)

    @property
    def kept(self) -> EpochRow:
        """`row`, once `run_stage` has returned."""
        assert self.row is not None
        return self.row

    def note(self, row: EpochRow, model: nn.Module) -> bool:
        """Keep the model's weights if `row` is the best so far, and answer whether it is."""
        self.rows.append(row)
        if self.row is not None and (row.val_top1, -row.val_loss) <= (self.row.val_top1, -self.row.val_loss):
            return False
        self.row, self.state = row, snapshot(model)
        return True


def snapshot(model: nn.Module) -> State:
    """A copy of all weights and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def run_stage(stage: Stage, best: Best, on_epoch: Callable[[EpochRow, bool], None]) -> None:
    """Train `stage`; the model ends with the weights of the best epoch, which may be one that `best` held before.

    Args:
        stage: see there.
        best: what is known so far; told of every epoch. If the loss stops being a number, `best.stopped` says so.
        on_epoch: called after each epoch with its row and whether it is the best so far.

    Raises:
        SettingsError: the loss was no number before a single epoch was good.
    """
    schedule = warm_up_and_cosine(stage.optimizer, stage.epochs * stage.steps, stage.warm_up)
    before = len(best.rows)
    for epoch in range(stage.epochs):
        row = _run_epoch(stage, schedule, epoch, before + epoch + 1)
        if not math.isfinite(row.train_loss + row.val_loss):
            peak = max(group["initial_lr"] for group in stage.optimizer.param_groups)
            best.stopped = f"the loss was no number any more in epoch {row.epoch}: try a smaller --lr than {peak:g}"
            break
        on_epoch(row, best.note(row, stage.model))
    if best.row is None:
        raise SettingsError(best.stopped or f"the stage {stage.name!r} has no epochs")
    stage.model.load_state_dict(best.state)


def _run_epoch(stage: Stage, schedule: LambdaLR, epoch: int, number: int) -> EpochRow:
    """Train on every batch once, or until the loss is no number; then validate."""
    began = time.perf_counter()
    stage.model.train()
    for module in stage.kept_in_eval:
        module.eval()
    lr = total_loss = 0.0
    seen = right = 0
    for inputs, labels in stage.batches(epoch):
        lr = max(lr, *(group["lr"] for group in stage.optimizer.param_groups))
        logits = stage.model(inputs)
        loss = functional.cross_entropy(logits, labels, label_smoothing=stage.label_smoothing)
        stage.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        stage.optimizer.step()
        schedule.step()
        mean_loss, top1 = loss_and_top1(logits.detach(), labels)
        total_loss += mean_loss * len(labels)
        right += round(top1 * len(labels))
        seen += len(labels)
        if not math.isfinite(mean_loss):
            break
    stage.model.eval()
    val_loss, val_top1 = stage.evaluate()
    seconds = time.perf_counter() - began
    return EpochRow(stage.name, number, lr, total_loss / seen, right / seen, val_loss, val_top1, seconds)
