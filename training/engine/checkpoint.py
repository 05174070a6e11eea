"""Checkpoint of a training stage between two epochs, used to resume training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

State = dict[str, Tensor]
"""Weights and buffers by name, as returned by `state_dict`."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Complete state required to run the next epoch.

    epochs: number of completed epochs. model: `state_dict` of the model. optimizer: `state_dict` of the optimizer.
    average: moving average of the weights; None if EMA is disabled.
    scale: `GradScaler` state; empty if gradients are not scaled.
    """

    epochs: int
    model: State
    optimizer: dict[str, Any]
    average: State | None
    scale: dict[str, float]
