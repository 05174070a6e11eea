"""Those who follow a training: loggers, plots, services of others."""

from __future__ import annotations

from typing import Protocol

from tlcli.training.metrics.scores import EpochRow


class Watcher(Protocol):
    """Told of a training as it goes, in the process that trains."""

    def epoch(self, row: EpochRow, is_best: bool) -> None:
        """An epoch is over; `is_best`: the network after it is the best so far."""
        ...

    def step(self, number: int, loss: float) -> None:
        """A step of the stage of all layers, from 1, and the mean cross-entropy of its images in nats."""
        ...
