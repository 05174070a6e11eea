"""Pictures and a pretrained backbone to a run folder with a checkpoint."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.config import FinetuneConfig
    from training.datasets import load_dataset
    from training.fit import RunResult, find_lr, finetune, resume
    from training.run import Run, load_run

__all__ = ["FinetuneConfig", "Run", "RunResult", "find_lr", "finetune", "load_dataset", "load_run", "resume"]

# PyTorch's threads spin while they wait for each other. Where other processes want the cores too (those that read
# pictures do), each wait then lasts until the scheduler takes the spinning thread away: training a small ResNet on two
# busy cores was measured 10 to 40 times slower. Read when PyTorch is imported; a user's own choice stands.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_HOMES = {
    "FinetuneConfig": "training.config",
    "Run": "training.run",
    "RunResult": "training.fit",
    "find_lr": "training.fit",
    "finetune": "training.fit",
    "load_dataset": "training.datasets",
    "load_run": "training.run",
    "resume": "training.fit",
}


def __getattr__(name: str) -> object:
    """Import what is asked for when it is asked for: settings and data sets need no PyTorch."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
