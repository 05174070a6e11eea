"""State of a stage between two epochs, from which training resumes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

State = dict[str, Tensor]
"""Weights and buffers by name, as `state_dict` returns them."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Everything that the next epoch depends on.

    epochs: number of finished epochs. model: its `state_dict`. optimizer: its `state_dict`.
    average: moving average of the weights; None without one.
    scale: `GradScaler` state; empty without a scaler.
    """

    epochs: int
    model: State
    optimizer: dict[str, Any]
    average: State | None
    scale: dict[str, float]
