"""An exponential moving average of a network's weights, which is often a better network than the last step's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def snapshot(model: nn.Module) -> State:
    """A copy of all weights and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class Average:
    """Of all weights and buffers: after each step `average = d * average + (1 - d) * model`.

    d is `decay`, and less in the first steps, (1 + n) / (10 + n), so that the random beginning is forgotten (as in TensorFlow's).
    """

    def __init__(self, model: nn.Module, decay: float, state: State | None = None) -> None:
        """`state`: where it was when it was saved; otherwise it begins with the model's."""
        self._model = model
        self._decay = decay
        begin = model.state_dict() if state is None else state
        self.state = {name: tensor.detach().clone() for name, tensor in begin.items()}  # it changes in place

    @torch.no_grad()
    def update(self, step: int) -> None:
        """`step`: from 0, over all epochs."""
        decay = min(self._decay, (1 + step) / (10 + step))
        current = self._model.state_dict()
        numbers = [name for name, tensor in self.state.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.state[name] for name in numbers], [current[name] for name in numbers], 1 - decay)
        for name in self.state.keys() - set(numbers):  # counts of batches
            self.state[name].copy_(current[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average's weights within the block."""
        kept = snapshot(self._model)
        self._model.load_state_dict(self.state)
        try:
            yield
        finally:
            self._model.load_state_dict(kept)
