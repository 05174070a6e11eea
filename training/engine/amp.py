"""Numeric precision of training: float32, or automatic mixed precision on a GPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer


class Precision:
    """Float32, or autocast: to bfloat16 where the device supports it, otherwise to float16 with scaled gradients."""

    def __init__(self, device: torch.device, amp: Literal["auto", "on", "off"]) -> None:
        """Choose the precision; `auto` is mixed on a GPU and float32 elsewhere."""
        self._device = device
        self._mixed = amp == "on" or (amp == "auto" and device.type == "cuda")
        supports_bfloat16 = device.type == "cpu" or torch.cuda.is_bf16_supported()
        self._type = torch.bfloat16 if supports_bfloat16 else torch.float16
        self._scaler = GradScaler(device.type, enabled=self._mixed and not supports_bfloat16)

    def forward(self) -> AbstractContextManager[None]:
        """Return the context in which to run the network."""
        if not self._mixed:
            return nullcontext()
        return torch.autocast(self._device.type, self._type)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, scaled if the precision needs it."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: Optimizer) -> None:
        """Take the optimizer's step; skip it and lower the scale if scaled gradients are NaN or infinite."""
        self._scaler.step(optimizer)
        self._scaler.update()

    def state(self) -> dict[str, float]:
        """Return the GradScaler state for checkpoints; empty without a scaler."""
        return dict(self._scaler.state_dict())

    def restore(self, state: dict[str, float]) -> None:
        """Load what `state` returned."""
        if state:
            self._scaler.load_state_dict(state)
