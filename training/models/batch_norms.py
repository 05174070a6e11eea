"""Batch norms, and the inputs that they cannot be trained on."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tlcli.contract.errors import SettingsError
from tlcli.training.models.network import Network


def has_batch_norms(model: nn.Module) -> bool:
    """True if a layer normalises by the statistics of a batch."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def folded_norms(network: nn.Module) -> list[nn.Module]:
    """Batch norms that do nothing in eval mode: their mean 0 and variance 1 were folded into the layers before them.

    To train on a batch's own statistics would make the network another one, and what it learned would be lost.
    """
    return [module for module in network.modules() if isinstance(module, _BatchNorm) and _is_folded(module)]


def _is_folded(norm: _BatchNorm) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    return mean is not None and variance is not None and bool((mean == 0).all()) and bool(((variance - 1).abs() < 1e-3).all())


def require_more_than_one_image(network: Network, from_scratch: bool) -> None:
    """Check that the network's batch norms can be trained on one image at a time.

    A norm of pooled features, such as that of a ResNeSt's attention, has one value a channel of one image: no variance.

    Args:
        network: in eval mode or not; it is not changed.
        from_scratch: batch norms that were folded into other layers are trained too.

    Raises:
        SettingsError: one of them cannot.
    """
    left_alone = set() if from_scratch else set(folded_norms(network))
    lone: list[str] = []

    def note(name: str) -> None:
        lone.append(name)

    hooks = [
        module.register_forward_pre_hook(lambda module, inputs, name=name: note(name) if _is_lone(inputs[0]) else None)
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module not in left_alone
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
    if lone:
        raise SettingsError(
            f"--batch-size 1: batch norm {lone[0].removeprefix('backbone.')} of {network.config.backbone} has a single value a channel of"
            " one image, and needs more to train on: use --batch-size 2 or more"
        )


def _is_lone(values: Tensor) -> bool:
    return values.numel() == values.shape[1]


def refuse_lone_image(error: ValueError) -> None:
    """Raises: SettingsError: it is PyTorch's error of a norm that has a single value a channel."""
    shape = re.search(r"Expected more than 1 (?:value per channel|spatial element) when training, got input size (.*)", str(error))
    if shape:
        size = re.sub(r"torch.Size\((.*)\)", r"\1", shape[1])
        raise SettingsError(
            f"a norm of the network has a single value a channel to train on (its input is {size}): use a larger --batch-size"
            " or --image-size"
        ) from error
