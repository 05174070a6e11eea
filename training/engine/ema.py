"""Exponential moving average of a network's weights, often a better network than the last step's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from timm.utils.model_ema import ModelEmaV3
from torch import nn

from tlcli.training.engine.checkpoint import State


def snapshot(model: nn.Module) -> State:
    """Return a copy of all weights and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class EMA(ModelEmaV3):
    """timm's average of all weights and buffers, with TensorFlow's warm-up.

    After step n, from 0, `average = d * average + (1 - d) * model`, where d is `min(decay, (1 + n) / (10 + n))`: the first steps forget the
    random initial weights quickly.
    """

    def __init__(self, model: nn.Module, decay: float, state: State | None = None) -> None:
        """Begin with a copy of `state`, saved by an earlier run; None begins with the model's weights."""
        super().__init__(model, decay=decay)
        if state is not None:
            self.module.load_state_dict(state)

    def get_decay(self, step: int | None = None) -> float:
        """Return the decay after a step, numbered from 0 over all epochs."""
        return float(self.decay if step is None else min(self.decay, (1 + step) / (10 + step)))

    @property
    def state(self) -> State:
        """Averaged weights and buffers; each update changes them in place."""
        state: State = self.module.state_dict()
        return state

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Give `model` the averaged weights within the block, and its own weights back afterwards."""
        own = snapshot(model)
        model.load_state_dict(self.state)
        try:
            yield
        finally:
            model.load_state_dict(own)
