"""A training as TensorBoard shows it. The package is optional: `pip install 'tlcli[tensorboard]'`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol, cast

from contract.errors import SettingsError
from training.results import EpochRow
from training.run_files import TENSORBOARD


class TensorboardLog:
    """A `training.watching.Watcher` that writes to `<run>/tensorboard`; what it was told of an epoch is there when `epoch` returns.

    `loss` and `top1` are charts with a curve each for `train` and `val`, over the epochs, as are `lr` and `seconds`; `loss_of_step` is the
    loss of each step of the stage of all layers.
    """

    def __init__(self, run: Path) -> None:
        """`run`: its folder.

        Raises:
            SettingsError: TensorBoard is not installed.
            OSError: the folder cannot be written to.
        """
        create = _summary_writer()
        self._train, self._val = (cast("_Writer", create(str(run / TENSORBOARD / part))) for part in ("train", "val"))

    def epoch(self, row: EpochRow, is_best: bool) -> None:
        """See `training.watching.Watcher`."""
        for name, value in (("loss", row.train_loss), ("top1", row.train_top1), ("lr", row.lr), ("seconds", row.seconds)):
            self._train.add_scalar(name, value, row.epoch)
        for name, value in (("loss", row.val_loss), ("top1", row.val_top1)):
            self._val.add_scalar(name, value, row.epoch)
        self._train.flush()
        self._val.flush()

    def step(self, number: int, loss: float) -> None:
        """See `training.watching.Watcher`."""
        self._train.add_scalar("loss_of_step", loss, number)

    def close(self) -> None:
        """Nothing more will come."""
        self._train.close()
        self._val.close()


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
