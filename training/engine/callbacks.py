"""Callbacks for training runs, used by loggers, plots, experiment trackers and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a callback can be written without importing PyTorch
    from tlcli.training.engine.checkpoint import Checkpoint
    from tlcli.training.metrics.scores import EpochRow


class Callback:
    """Base class for training callbacks. Override the hooks you need.

    Hooks run in the training process; under `torchrun`, only in rank 0. An exception raised by a hook ends the run, which can then be
    resumed.
    """

    def on_run_start(self, folder: Path) -> None:
        """Called once the run folder exists and the run can be resumed."""

    def on_step_end(self, number: int, loss: float) -> None:
        """Called after each step of the stage that trains all layers.

        Args:
            number: number of the step, starting at 1.
            loss: mean cross-entropy of the images in the step, in nats.
        """

    def on_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Called after each epoch that trains all layers, before `on_epoch_end`. The next epoch modifies the tensors in place."""

    def on_epoch_end(self, row: EpochRow, is_best: bool) -> None:
        """Called after each epoch. `is_best` is True if the network is the best so far."""


class CallbackList(Callback):
    """Callback that forwards each hook to a sequence of callbacks, in order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = tuple(callbacks)

    def on_run_start(self, folder: Path) -> None:
        """Call `on_run_start` on each callback."""
        for callback in self._callbacks:
            callback.on_run_start(folder)

    def on_step_end(self, number: int, loss: float) -> None:
        """Call `on_step_end` on each callback."""
        for callback in self._callbacks:
            callback.on_step_end(number, loss)

    def on_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Call `on_checkpoint` on each callback."""
        for callback in self._callbacks:
            callback.on_checkpoint(checkpoint)

    def on_epoch_end(self, row: EpochRow, is_best: bool) -> None:
        """Call `on_epoch_end` on each callback."""
        for callback in self._callbacks:
            callback.on_epoch_end(row, is_best)


class RunFolderCallback(Callback):
    """Callback that appends the run folder to a list as soon as the run can be resumed."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders

    def on_run_start(self, folder: Path) -> None:
        """Append the run folder to the list."""
        self._folders.append(folder)
