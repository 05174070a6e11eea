"""TensorBoard logging. Requires the optional package: `pip install 'tlcli[tensorboard]'`."""

from __future__ import annotations

import importlib
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

from tlcli.contract.errors import SettingsError
from tlcli.training.engine.callbacks import Callback
from tlcli.training.metrics.scores import EpochRow
from tlcli.training.settings.run_file_names import TENSORBOARD


class TensorboardLog(Callback):
    """Callback that writes TensorBoard logs to `<run>/tensorboard`. The metrics of an epoch are on disk when `on_epoch_end` returns.

    The charts `loss` and `top1` show one curve each for `train` and `val` over the epochs; `lr` and `seconds` have a single curve, and so
    has `mean_ap`, which replaces `top1` with several labels per image.
    `loss_of_step` is the loss of each step of the stage that trains all layers. If the log can no longer be written, training continues
    without it.
    """

    def __init__(self, run: Path, log: Callable[[str], None] = lambda _: None) -> None:
        """Open the TensorBoard log.

        Args:
            run: run folder.
            log: callback for a warning if the TensorBoard log cannot be written.

        Raises:
            SettingsError: TensorBoard is not installed.
        """
        create = _summary_writer()
        self._folder = run / TENSORBOARD
        self._log = log
        self._writes = True
        self._writers: dict[str, _Writer] = {}
        threading.excepthook = _quiet_about_writers(threading.excepthook)
        with self._unless_it_fails():
            for part in ("train", "val"):
                self._writers[part] = cast("_Writer", create(str(self._folder / part)))

    def on_epoch_end(self, row: EpochRow, is_best: bool) -> None:
        """Write the metrics of an epoch and flush them to disk."""
        with self._unless_it_fails():
            for name, value in (("loss", row.train_loss), ("top1", row.train_top1), ("lr", row.lr), ("seconds", row.seconds)):
                self._add("train", name, value, row.epoch)
            for name, figure in (("loss", row.val_loss), ("top1", row.val_top1), ("mean_ap", row.val_mean_ap)):
                self._add("val", name, figure, row.epoch)
            for writer in self._writers.values() if self._writes else ():
                writer.flush()

    def on_step_end(self, number: int, loss: float) -> None:
        """Write the loss of a step."""
        with self._unless_it_fails():
            self._add("train", "loss_of_step", loss, number)

    def close(self) -> None:
        """Close the TensorBoard log."""
        for writer in self._writers.values():
            with self._unless_it_fails():
                writer.close()

    def _add(self, part: str, name: str, value: float | None, step: int) -> None:
        if self._writes and value is not None and not (name == "top1" and math.isnan(value)):
            self._writers[part].add_scalar(name, value, step)

    @contextmanager
    def _unless_it_fails(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._writes:
                self._log(f"warning: {self._folder}: {error.strerror or error}: the TensorBoard log ends here, training continues")
            self._writes = False


def _quiet_about_writers(previous: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Return a threading excepthook that suppresses I/O errors of TensorBoard's writer threads.

    A writer raises its error again on the next call, so the traceback printed by its thread is redundant.
    """

    def hook(failure: Any) -> None:
        if type(failure.thread).__name__ != "_AsyncWriterThread" or not isinstance(failure.exc_value, OSError):
            previous(failure)

    return hook


def require_tensorboard() -> None:
    """Check that TensorBoard is installed. Call this before any long task.

    Raises:
        SettingsError: TensorBoard is not installed.
    """
    _summary_writer()


class _Writer(Protocol):
    """Subset of the methods of `torch.utils.tensorboard.SummaryWriter` used here."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def _summary_writer() -> Any:
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError as error:
        raise SettingsError(
            "--tensorboard needs the package tensorboard, which is not installed: pip install 'tlcli[tensorboard]'"
        ) from error
