"""A training as TensorBoard shows it. The package is optional: `pip install 'tlcli[tensorboard]'`."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

from tlcli.contract.errors import SettingsError
from tlcli.training.metrics.scores import EpochRow
from tlcli.training.settings.run_file_names import TENSORBOARD


class TensorboardLog:
    """A `callbacks.Watcher` that writes to `<run>/tensorboard`; what it was told of an epoch is there when `epoch` returns.

    `loss` and `top1` are charts with a curve each for `train` and `val`, over the epochs, as are `lr` and `seconds`; `loss_of_step` is the
    loss of each step of the stage of all layers. A log that cannot be written any more does not stop the training.
    """

    def __init__(self, run: Path, say: Callable[[str], None] = lambda _: None) -> None:
        """`run`: its folder. `say`: told if the log cannot be written.

        Raises:
            SettingsError: TensorBoard is not installed.
        """
        create = _summary_writer()
        self._folder = run / TENSORBOARD
        self._say = say
        self._writes = True
        self._writers: dict[str, _Writer] = {}
        threading.excepthook = _quiet_about_writers(threading.excepthook)
        with self._unless_it_fails():
            for part in ("train", "val"):
                self._writers[part] = cast("_Writer", create(str(self._folder / part)))

    def epoch(self, row: EpochRow, is_best: bool) -> None:
        """See `tlcli.training.engine.callbacks.Watcher`."""
        with self._unless_it_fails():
            for name, value in (("loss", row.train_loss), ("top1", row.train_top1), ("lr", row.lr), ("seconds", row.seconds)):
                self._add("train", name, value, row.epoch)
            for name, value in (("loss", row.val_loss), ("top1", row.val_top1)):
                self._add("val", name, value, row.epoch)
            for writer in self._writers.values() if self._writes else ():
                writer.flush()

    def step(self, number: int, loss: float) -> None:
        """See `tlcli.training.engine.callbacks.Watcher`."""
        with self._unless_it_fails():
            self._add("train", "loss_of_step", loss, number)

    def close(self) -> None:
        """Nothing more will come."""
        for writer in self._writers.values():
            with self._unless_it_fails():
                writer.close()

    def _add(self, part: str, name: str, value: float, at: int) -> None:
        if self._writes:
            self._writers[part].add_scalar(name, value, at)

    @contextmanager
    def _unless_it_fails(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._writes:
                self._say(f"warning: {self._folder}: {error.strerror or error}: TensorBoard's log ends here, the training goes on")
            self._writes = False


def _quiet_about_writers(otherwise: Callable[[Any], Any]) -> Callable[[Any], None]:
    """TensorBoard's thread keeps its error for the next call, and prints its traceback as well."""

    def hook(ended: Any) -> None:
        if type(ended.thread).__name__ != "_AsyncWriterThread" or not isinstance(ended.exc_value, OSError):
            otherwise(ended)

    return hook


def require_tensorboard() -> None:
    """Raises: SettingsError: TensorBoard is not installed. To be asked before anything that lasts."""
    _summary_writer()


class _Writer(Protocol):
    """What is used of `torch.utils.tensorboard.SummaryWriter`."""

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
