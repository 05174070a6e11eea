"""Synchronised batch norms, which share their statistics across processes. GPUs use PyTorch's implementation."""

from __future__ import annotations

from typing import cast

import timm.layers
import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn import functional as differentiable
from torch.nn.modules.batchnorm import _BatchNorm


def sync_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model with batch norms that synchronise during training. Weights and their names do not change."""
    if device.type == "cuda":
        return cast("nn.Module", timm.layers.convert_sync_batchnorm(model))  # type: ignore[attr-defined, no-untyped-call]
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = type(f"Synced{type(module).__name__}", (_Synced, type(module)), {})
    return model


class _Synced(_BatchNorm):
    """Synchronised batch norm for CPUs. PyTorch's implementation supports only GPUs."""

    def forward(self, input: Tensor) -> Tensor:  # parameter name used by PyTorch
        """Normalise this process's inputs `[N, c, ...]` with statistics computed over all processes."""
        if not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        count = torch.tensor(float(input.numel() // input.shape[1]))
        distributed.all_reduce(count)
        mean = differentiable.all_reduce(input.sum(axes)) / count  # type: ignore[no-untyped-call]
        centred = input - mean.view(shape)
        variance = differentiable.all_reduce(centred.square().sum(axes)) / count  # type: ignore[no-untyped-call]
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        normed: Tensor = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            normed = normed * self.weight.view(shape) + self.bias.view(shape)
        for after in ("drop", "act"):  # timm fuses norm and activation into one module
            layer = getattr(self, after, None)
            normed = normed if layer is None else layer(normed)
        return normed

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running mean and variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)
