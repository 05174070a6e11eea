"""Hooks into a training run: loggers, plots, trackers, checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a callback can be written without importing PyTorch
    from tlcli.training.engine.checkpoint import Checkpoint
    from tlcli.training.metrics.scores import EpochRow


class Callback:
    """Base class for hooks into a training run; override the hooks that you need.

    Hooks run in the process that trains; under `torchrun`, in the first process only. An exception that a hook raises ends the run,
    which can be resumed.
    """

    def on_run_start(self, folder: Path) -> None:
        """Run as soon as the run's folder exists and can be resumed."""

    def on_step_end(self, number: int, loss: float) -> None:
        """Run after each step of the stage that trains all layers.

        Args:
            number: from 1.
            loss: mean cross-entropy of the step's images, nats.
        """

    def on_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Run after each epoch that trains all layers, before `on_epoch_end`; the next epoch changes the tensors in place."""

    def on_epoch_end(self, row: EpochRow, is_best: bool) -> None:
        """Run after each epoch; `is_best` is True if its network is the best so far."""


class CallbackList(Callback):
    """Several callbacks as one; each hook calls theirs in order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = tuple(callbacks)

    def on_run_start(self, folder: Path) -> None:
        """Call every callback's `on_run_start`."""
        for callback in self._callbacks:
            callback.on_run_start(folder)

    def on_step_end(self, number: int, loss: float) -> None:
        """Call every callback's `on_step_end`."""
        for callback in self._callbacks:
            callback.on_step_end(number, loss)

    def on_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Call every callback's `on_checkpoint`."""
        for callback in self._callbacks:
            callback.on_checkpoint(checkpoint)

    def on_epoch_end(self, row: EpochRow, is_best: bool) -> None:
        """Call every callback's `on_epoch_end`."""
        for callback in self._callbacks:
            callback.on_epoch_end(row, is_best)


class RunFolderCallback(Callback):
    """Callback that adds the run's folder to a list as soon as the run can be resumed."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders

    def on_run_start(self, folder: Path) -> None:
        """Add the folder."""
        self._folders.append(folder)
