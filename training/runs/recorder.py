"""Callback that saves a run after every epoch so that it can be resumed."""

from __future__ import annotations

from tlcli.training.engine.callbacks import Callback
from tlcli.training.engine.checkpoint import Checkpoint
from tlcli.training.engine.stage import Best
from tlcli.training.metrics.scores import EpochRow
from tlcli.training.runs import resume_state
from tlcli.training.runs.run_folder import RunFolder


class RunRecorder(Callback):
    """Callback that writes the resume state, the metrics and the best weights of a run."""

    def __init__(self, folder: RunFolder, best: Best) -> None:
        """Create a recorder.

        Args:
            folder: run folder to write to.
            best: best epoch, which the running stage updates.
        """
        self._folder = folder
        self._best = best

    def on_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Save the resume state."""
        resume_state.save(self._folder.path, checkpoint, self._best)

    def on_epoch_end(self, row: EpochRow, is_best: bool) -> None:
        """Write the metrics of all epochs, and the weights if this epoch is the best so far."""
        self._folder.write_metrics(self._best.rows)
        if is_best:
            self._folder.write_checkpoint(self._best.state)
