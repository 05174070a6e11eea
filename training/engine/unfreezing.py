"""Gradual unfreezing of layers during fine-tuning, from the head down."""

from __future__ import annotations

import math

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer


class GradualUnfreezing:
    """Schedule that unfreezes layers from the top down (Howard and Ruder 2018, arXiv:1801.06146, section 3.3).

    A layer is a set of parameters that share a learning rate. All layers are unfrozen after half of the epochs.
    """

    def __init__(self, optimizer: Optimizer, epochs: int) -> None:
        """Group the optimizer's parameters into layers by their initial learning rate.

        Args:
            optimizer: optimizer created by `tlcli.training.engine.optimizer.layered_optimizer`.
            epochs: number of epochs of the stage.
        """
        rates = sorted({group["lr"] for group in optimizer.param_groups}, reverse=True)
        self._layers = [[p for group in optimizer.param_groups if group["lr"] == rate for p in group["params"]] for rate in rates]
        self._all_after = max(1, epochs // 2)

    def layers(self, epoch: int) -> int:
        """Return the number of unfrozen layers in an epoch. Epochs are numbered from 0."""
        return min(len(self._layers), math.ceil(len(self._layers) * (epoch + 1) / self._all_after))

    def begin(self, epoch: int) -> None:
        """Unfreeze the layers to train in an epoch, and freeze the others."""
        for number, parameters in enumerate(self._layers):
            for parameter in parameters:
                parameter.requires_grad_(number < self.layers(epoch))

    def finish(self) -> None:
        """Unfreeze all layers."""
        for parameter in (parameter for layer in self._layers for parameter in layer):
            parameter.requires_grad_(True)


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """Return the batch norms with frozen weights. Their running statistics must not change either."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.weight is not None and not module.weight.requires_grad
    ]
