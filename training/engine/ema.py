"""Exponential moving average (EMA) of a network's weights, which often performs better than the weights of the last step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from timm.utils.model_ema import ModelEmaV3
from torch import nn

from tlcli.training.engine.checkpoint import State


def snapshot(model: nn.Module) -> State:
    """Return a detached copy of all weights and buffers of a model."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class EMA(ModelEmaV3):
    """timm's EMA of all weights and buffers, with the decay warm-up used in TensorFlow.

    After step n, counted from 0, `average = d * average + (1 - d) * model` with `d = min(decay, (1 + n) / (10 + n))`. The small decay of
    the first steps quickly removes the influence of the random initial weights.
    """

    def __init__(self, model: nn.Module, decay: float, state: State | None = None) -> None:
        """Initialize the average from `state`, saved by an interrupted run, or from the model's weights if it is None."""
        super().__init__(model, decay=decay)
        if state is not None:
            self.module.load_state_dict(state)

    def get_decay(self, step: int | None = None) -> float:
        """Return the decay to apply after a step. Steps are numbered from 0 across all epochs."""
        return float(self.decay if step is None else min(self.decay, (1 + step) / (10 + step)))

    @property
    def state(self) -> State:
        """Averaged weights and buffers. Each update modifies the tensors in place."""
        state: State = self.module.state_dict()
        return state

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Load the averaged weights into `model` within the block, and restore its own weights on exit."""
        own = snapshot(model)
        model.load_state_dict(self.state)
        try:
            yield
        finally:
            model.load_state_dict(own)
