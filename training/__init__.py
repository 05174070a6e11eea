"""Fine-tuning of pretrained backbones on image data sets. Each run writes a folder with a checkpoint."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlcli.training.data.load import load_dataset
    from tlcli.training.engine.callbacks import Callback
    from tlcli.training.fine_tuning import RunResult, find_lr, finetune, resume
    from tlcli.training.runs.load_run import Run, load_run
    from tlcli.training.settings.config import FinetuneConfig

__all__ = ["Callback", "FinetuneConfig", "Run", "RunResult", "find_lr", "finetune", "load_dataset", "load_run", "resume"]

# PyTorch's threads spin while they wait for each other. If other processes need the cores too (as the image workers
# do), each wait lasts until the scheduler preempts the spinning thread: training a small ResNet on two busy cores
# was measured to be 10 to 40 times slower. PyTorch reads the variable on import; a value set by the user is kept.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_HOMES = {
    "Callback": "tlcli.training.engine.callbacks",
    "FinetuneConfig": "tlcli.training.settings.config",
    "Run": "tlcli.training.runs.load_run",
    "RunResult": "tlcli.training.fine_tuning",
    "find_lr": "tlcli.training.fine_tuning",
    "finetune": "tlcli.training.fine_tuning",
    "load_dataset": "tlcli.training.data.load",
    "load_run": "tlcli.training.runs.load_run",
    "resume": "tlcli.training.fine_tuning",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that settings and data sets can be used without importing PyTorch."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
