"""Numerical precision of training: float32, or automatic mixed precision (AMP)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer


class Precision:
    """Precision of the forward and backward pass.

    Mixed precision autocasts to bfloat16 if the device supports it, and otherwise to float16 with gradient scaling.
    """

    def __init__(self, device: torch.device, amp: Literal["auto", "on", "off"]) -> None:
        """Select the precision for a device. With `auto`, use mixed precision on a GPU and float32 elsewhere."""
        self._device = device
        self._mixed = amp == "on" or (amp == "auto" and device.type == "cuda")
        supports_bfloat16 = device.type == "cpu" or torch.cuda.is_bf16_supported()
        self._type = torch.bfloat16 if supports_bfloat16 else torch.float16
        self._scaler = GradScaler(device.type, enabled=self._mixed and not supports_bfloat16)

    def forward(self) -> AbstractContextManager[None]:
        """Return the context manager for the forward pass."""
        if not self._mixed:
            return nullcontext()
        return torch.autocast(self._device.type, self._type)

    def backward(self, loss: Tensor) -> None:
        """Backpropagate a loss and accumulate its gradients, scaled if the precision is float16."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: Optimizer) -> None:
        """Run an optimizer step. If scaled gradients are NaN or infinite, skip the step and reduce the scale."""
        self._scaler.step(optimizer)
        self._scaler.update()

    def state(self) -> dict[str, float]:
        """Return the `GradScaler` state for checkpoints. It is empty if gradients are not scaled."""
        return dict(self._scaler.state_dict())

    def restore(self, state: dict[str, float]) -> None:
        """Restore a `GradScaler` state returned by `state`."""
        if state:
            self._scaler.load_state_dict(state)
