"""Learning rate finder, which implements the range test of Smith 2017, arXiv:1506.01186, section 3.3."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

from tlcli.contract.errors import SettingsError
from tlcli.training.engine.ema import snapshot
from tlcli.training.engine.stage import Batch, Stage
from tlcli.training.engine.step import Stepper
from tlcli.training.runtime.progress import ProgressFactory

LOWEST, HIGHEST = 1e-7, 10.0
STEPS = 100

_SMOOTHING = 0.9
"""Decay factor of the exponential moving average of the loss."""

_DIVERGED = 4.0
"""The test stops when the smoothed loss exceeds this multiple of its minimum."""

_WINDOW = 13
"""Number of steps in each line fit that measures a slope. Single steps are too noisy."""


@dataclass(frozen=True)
class RateCurve:
    """Loss curve over increasing learning rates.

    rates: learning rate of each step, ascending. losses: loss of each step, in nats. smoothed: moving average of the losses.
    suggestion: learning rate at which the loss falls fastest.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float


def try_rates(stage: Stage, progress: ProgressFactory, steps: int = STEPS) -> RateCurve:
    """Train while the learning rate rises from `LOWEST` to `HIGHEST`, and return the loss curve.

    The test stops early if the loss diverges. The weights of the model are restored afterwards.

    Raises:
        SettingsError: the loss does not fall at any learning rate.
    """
    before = snapshot(stage.model)
    stepper = Stepper(stage.model, stage.optimizer, stage.options, stage.log)
    stepper.begin()
    highest = max(group["lr"] for group in stage.optimizer.param_groups)
    shares = [group["lr"] / highest for group in stage.optimizer.param_groups]
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    average = 0.0
    stage.model.train()
    for module in stage.kept_in_eval:
        module.eval()
    with progress("Trying rates", steps) as advance:
        for number, (inputs, labels, weights) in enumerate(islice(_endless(stage), steps)):
            rate = LOWEST * (HIGHEST / LOWEST) ** (number / max(steps - 1, 1))
            for group, share in zip(stage.optimizer.param_groups, shares, strict=True):
                group["lr"] = rate * share
            result = stepper.step(number, inputs, labels, weights)
            advance(1)
            if not result.finite:
                break
            rates.append(rate)
            losses.append(result.loss / result.count)
            average = _SMOOTHING * average + (1 - _SMOOTHING) * losses[-1]
            smoothed.append(average / (1 - _SMOOTHING ** (number + 1)))
            if smoothed[-1] > _DIVERGED * min(smoothed):
                break
    stage.model.load_state_dict(before)
    stage.model.eval()
    return RateCurve(tuple(rates), tuple(losses), tuple(smoothed), steepest(rates, smoothed))


def steepest(rates: list[float], losses: list[float]) -> float:
    """Return the learning rate with the steepest descent of the loss, measured over the logarithm of the rate.

    Only rates up to the minimum of the loss are considered.

    Raises:
        SettingsError: the loss does not fall at any learning rate.
    """
    least = int(np.argmin(losses)) if losses else 0
    if least < 2:
        raise SettingsError("the loss does not decrease at any of the learning rates: check the images, the labels and --weights")
    width = min(_WINDOW, least + 1)
    positions, values = np.log(rates[: least + 1]), np.array(losses[: least + 1])
    slopes = [np.polyfit(positions[start : start + width], values[start : start + width], 1)[0] for start in range(least + 2 - width)]
    return rates[int(np.argmin(slopes)) + width // 2]


def _endless(stage: Stage) -> Iterator[Batch]:
    for epoch in count():
        yield from stage.batches(epoch)
