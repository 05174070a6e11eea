"""Checks on batch norms: detection of folded batch norms, and of inputs too small to train on."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tlcli.contract.errors import SettingsError
from tlcli.training.models.network import Network


def has_batch_norms(model: nn.Module) -> bool:
    """Return True if the model contains a batch norm layer."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def folded_norms(network: nn.Module) -> list[nn.Module]:
    """Return the batch norms that were folded into the preceding layers.

    Their running mean is 0 and their variance 1, so they have no effect in eval mode. Training such a norm on batch statistics would
    change the network and destroy what it has learned.
    """
    return [module for module in network.modules() if isinstance(module, _BatchNorm) and _is_folded(module)]


def _is_folded(norm: _BatchNorm) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    return mean is not None and variance is not None and bool((mean == 0).all()) and bool(((variance - 1).abs() < 1e-3).all())


def require_more_than_one_image(network: Network, from_scratch: bool) -> None:
    """Check that the network's batch norms can be trained with a batch size of 1.

    A batch norm on pooled features, as in ResNeSt's attention, receives only one value per channel from a single image, so that the
    variance is undefined.

    Args:
        network: network in any mode; it is not changed.
        from_scratch: True if batch norms that were folded into other layers are trained too.

    Raises:
        SettingsError: a batch norm receives a single value per channel.
    """
    frozen = set() if from_scratch else set(folded_norms(network))
    single: list[str] = []

    def note(name: str) -> None:
        single.append(name)

    hooks = [
        module.register_forward_pre_hook(lambda module, inputs, name=name: note(name) if _is_single_value(inputs[0]) else None)
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module not in frozen
    ]
    size, training = network.config.preprocessing, network.training
    device = next(network.parameters()).device
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 3, size.height, size.width, device=device))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    if single:
        raise SettingsError(
            f"--batch-size 1: batch norm {single[0].removeprefix('backbone.')} of {network.config.backbone} has a single value per channel"
            " and cannot be trained on one image: use --batch-size 2 or more"
        )


def _is_single_value(values: Tensor) -> bool:
    return values.numel() == values.shape[1]


def refuse_lone_image(error: ValueError) -> None:
    """Translate PyTorch's error about a norm layer that receives a single value per channel. Ignore any other error.

    Raises:
        SettingsError: a norm layer receives a single value per channel.
    """
    shape = re.search(r"Expected more than 1 (?:value per channel|spatial element) when training, got input size (.*)", str(error))
    if shape:
        size = re.sub(r"torch.Size\((.*)\)", r"\1", shape[1])
        raise SettingsError(
            f"a norm of the network has a single value per channel to train on (input size {size}): use a larger --batch-size"
            " or --image-size"
        ) from error
