"""Networks with other classes than the one that they start from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tlcli.training.models.network import Network, build


@torch.no_grad()
def with_classes(network: Network, before: Sequence[str], now: Sequence[str]) -> Network:
    """Return a copy of a network for other classes, in eval mode.

    All layers but the last have the same weights. The last layer has the row of each class that the network knows, wherever the class is
    in the new order, and random rows for the others, from PyTorch's global generator.

    Args:
        network: network to copy; it is not changed.
        before: its classes, in the order of its logits.
        now: classes of the copy, in the order of its logits.
    """
    changed = build(network.config.model_copy(update={"num_classes": len(now)}))
    own = network.state_dict()
    of_last = {id(parameter) for parameter in changed.last_layer.parameters()}
    shared = {name for name, tensor in changed.state_dict(keep_vars=True).items() if id(tensor) not in of_last}
    changed.load_state_dict({name: own[name] for name in shared}, strict=False)
    rows = [(number, before.index(name)) for number, name in enumerate(now) if name in before]
    for number, row in rows:
        changed.last_layer.weight[number] = network.last_layer.weight[row]
        if changed.last_layer.bias is not None and network.last_layer.bias is not None:
            changed.last_layer.bias[number] = network.last_layer.bias[row]
    return changed
