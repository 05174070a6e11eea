"""Attention weights of vision transformers, found by running the network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tlcli.training.models.feature_layout import FeatureLayout
from tlcli.training.models.locality import probe_images
from tlcli.training.models.network import ImageNetwork
from tlcli.training.models.target_layers import TargetLayer

_ROUNDING = 1e-4
"""Largest difference of a sum of attention weights from 1."""


@dataclass(frozen=True)
class Attention:
    """Attention between the tokens of a layer in every block of a network.

    layers: modules that return the attention weights `[N, heads, t, t]`, in execution order.
    layout: layout of the tokens.
    rows: tokens of the last block on which the logits depend.
    """

    layers: tuple[TargetLayer, ...]
    layout: FeatureLayout
    rows: tuple[int, ...]


def find_attention(network: ImageNetwork, targets: Sequence[TargetLayer]) -> Attention | None:
    """Find the attention weights of a network whose tokens attend to each other in every block.

    A module returns attention weights if its output is a square matrix for each head, over all tokens of the explained layers, whose rows
    are not negative and have a sum of 1. Each of the network's attention modules must contain exactly one such module, so that networks
    with windows, or with tokens that are merged on the way, have none.

    Args:
        network: network in eval mode on the CPU, whose attention is plain and not fused, so that its weights pass through a module.
        targets: explained layers.

    Returns:
        The attention, or None if the layers do not hold the same tokens or a block has no such weights.
    """
    layouts = {target.layout for target in targets}
    if len(layouts) != 1 or (layout := next(iter(layouts))).kind != "tokens":
        return None
    tokens = layout.prefix + layout.height * layout.width
    size = network.config.preprocessing
    images = probe_images(size.height, size.width)[:2].to(network.device, network.dtype)
    weights: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()
    attentions: list[str] = []

    def watch(name: str, module: nn.Module, inputs: tuple[object, ...], output: object) -> Tensor | None:
        if not isinstance(output, Tensor):
            return None
        first = inputs[0] if inputs else None
        if hasattr(module, "fused_attn") and isinstance(first, Tensor) and first.shape[:-1] == output.shape[:-1]:  # not pooling
            attentions.append(name)
        if output.ndim != 4 or len(output) != len(images) or output.shape[2:] != (tokens, tokens) or not _are_shares(output):
            return None
        calls[name] += 1
        weights[name] = output + torch.zeros_like(output, requires_grad=True)
        return weights[name]

    modules = [(name, module) for name, module in network.backbone.named_modules() if name]
    handles = [module.register_forward_hook(partial(watch, name)) for name, module in modules]
    try:
        with torch.enable_grad():
            logits = network(images)
    finally:
        for handle in handles:
            handle.remove()
    # Of several modules that return the same weights, such as a softmax and a dropout, take the last.
    of_attention = {name.rpartition(".")[0]: name for name in weights}
    names = list(of_attention.values())
    if not names or sorted(of_attention) != sorted(attentions) or any(calls[name] != 1 for name in names):
        return None
    (gradient,) = torch.autograd.grad((logits * logits.detach().cos()).sum(), weights[names[-1]], allow_unused=True)
    if gradient is None:
        return None
    rows = gradient.abs().amax((0, 1, 3)).nonzero().flatten().tolist()
    layers = tuple(
        TargetLayer(
            name=name,
            kind=type(network.backbone.get_submodule(name)).__name__,
            channels=weights[name].shape[1],
            layout=FeatureLayout("channels_first", tokens, tokens),
            number=number,
            is_features=False,
        )
        for number, name in enumerate(names)
    )
    return Attention(layers, layout, tuple(rows))


def _are_shares(weights: Tensor) -> bool:
    return bool((weights >= 0).all()) and bool(((weights.sum(-1) - 1).abs() <= _ROUNDING).all())
