"""A learning rate, found by trying: the range test of Smith 2017, arXiv:1506.01186, section 3.3."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
from torch import Tensor

from tlcli.contract.errors import SettingsError
from tlcli.training.engine.ema import snapshot
from tlcli.training.engine.stage import Stage
from tlcli.training.engine.step import Steps
from tlcli.training.runtime.progress import ProgressFactory

LOWEST, HIGHEST = 1e-7, 10.0
STEPS = 100

_SMOOTHING = 0.9
"""Of the losses' exponential moving average."""

_LOST = 4.0
"""It is over when the smoothed loss is so many times the least one."""


_WINDOW = 13
"""Steps over which a slope is measured: a line through them, since single steps jump."""


@dataclass(frozen=True)
class RateCurve:
    """What was tried. rates: ascending. losses: of each step, nats. smoothed: their average. suggestion: where the loss falls fastest."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float


def try_rates(stage: Stage, progress: ProgressFactory, steps: int = STEPS) -> RateCurve:
    """Train a little while the rate rises from `LOWEST` to `HIGHEST`, until the loss is lost; the model is put back as it was.

    Raises:
        SettingsError: the loss never falls.
    """
    before = snapshot(stage.model)
    taken = Steps(stage.model, stage.optimizer, stage.way, stage.say)
    taken.begin()
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
        for number, (inputs, labels) in enumerate(islice(_endless(stage), steps)):
            rate = LOWEST * (HIGHEST / LOWEST) ** (number / max(steps - 1, 1))
            for group, share in zip(stage.optimizer.param_groups, shares, strict=True):
                group["lr"] = rate * share
            stepped = taken.take(number, inputs, labels)
            advance(1)
            if not stepped.finite:
                break
            rates.append(rate)
            losses.append(stepped.loss / stepped.count)
            average = _SMOOTHING * average + (1 - _SMOOTHING) * losses[-1]
            smoothed.append(average / (1 - _SMOOTHING ** (number + 1)))
            if smoothed[-1] > _LOST * min(smoothed):
                break
    stage.model.load_state_dict(before)
    stage.model.eval()
    return RateCurve(tuple(rates), tuple(losses), tuple(smoothed), steepest(rates, smoothed))


def steepest(rates: list[float], losses: list[float]) -> float:
    """The rate at which the loss falls fastest over the rate's logarithm, before it is least.

    Raises:
        SettingsError: it never falls.
    """
    least = int(np.argmin(losses)) if losses else 0
    if least < 2:
        raise SettingsError("the loss falls at no rate that was tried: look at the images and labels, or at --weights")
    width = min(_WINDOW, least + 1)
    places, values = np.log(rates[: least + 1]), np.array(losses[: least + 1])
    slopes = [np.polyfit(places[start : start + width], values[start : start + width], 1)[0] for start in range(least + 2 - width)]
    return rates[int(np.argmin(slopes)) + width // 2]


def _endless(stage: Stage) -> Iterator[tuple[Tensor, Tensor]]:
    for epoch in count():
        yield from stage.batches(epoch)
