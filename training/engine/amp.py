"""How numbers are held while a network trains: float32, or mixed with a shorter type on a GPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer


class Precision:
    """Float32 throughout, or autocast to bfloat16 where the device has it, to float16 with scaled gradients otherwise."""

    def __init__(self, device: torch.device, amp: Literal["auto", "on", "off"]) -> None:
        """`auto`: mixed on a GPU, plain elsewhere."""
        self._device = device
        self._mixed = amp == "on" or (amp == "auto" and device.type == "cuda")
        short = device.type == "cpu" or torch.cuda.is_bf16_supported()
        self._type = torch.bfloat16 if short else torch.float16
        self._scaler = GradScaler(device.type, enabled=self._mixed and not short)

    def forward(self) -> AbstractContextManager[None]:
        """Within it the network is run."""
        if not self._mixed:
            return nullcontext()
        return torch.autocast(self._device.type, self._type)

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: Optimizer) -> None:
        """Take the optimizer's step; left out where scaled gradients were no numbers, and the scale lowered."""
        self._scaler.step(optimizer)
        self._scaler.update()

    def state(self) -> dict[str, float]:
        """Of the scale, to be gone on from; empty where nothing is scaled."""
        return dict(self._scaler.state_dict())

    def restore(self, state: dict[str, float]) -> None:
        """What `state` returned."""
        if state:
            self._scaler.load_state_dict(state)
