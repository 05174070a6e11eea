"""Target layers of maps: modules of the backbone whose output `[N, c, h, w]` has a spatial extent."""

from __future__ import annotations

import contextlib
import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tlcli.contract.errors import ExportError
from tlcli.training.models.network import Network
from tlcli.training.models.spatial_layers import spatial_layers

FEATURES_CALL = "forward_features"
"""Layer name for the backbone's features if no single module returns them."""

Tap = Callable[[str, Tensor], Tensor]
"""Hook on a layer. It receives the layer's name and output, and returns the tensor that replaces the output."""


@dataclass(frozen=True)
class TargetLayer:
    """Layer that maps can explain.

    name: name of the module in the backbone.
    kind: class name of the module.
    channels, height, width: shape of the output at the network's input size.
    number: position in execution order; layers that return the same output share a number.
    is_features: True if the output is the backbone's features.
    """

    name: str
    kind: str
    channels: int
    height: int
    width: int
    number: int
    is_features: bool


def list_layers(network: Network) -> list[TargetLayer]:
    """Return the layers that maps can explain in execution order, with the backbone's features last."""
    layers = spatial_layers(network)
    calls = Counter(layer.module for layer in layers)
    targets = [
        TargetLayer(layer.module, layer.kind, *layer.shape, layer.number, layer.is_features)
        for layer in layers
        if calls[layer.module] == 1 and not layer.channels_last and layer.height > 1 and layer.width > 1
    ]
    if not any(layer.is_features for layer in targets):
        size = network.config.preprocessing
        with torch.no_grad():
            channels, height, width = network.features(torch.zeros(1, 3, size.height, size.width)).shape[1:]
        if height > 1 and width > 1:
            targets.append(TargetLayer(FEATURES_CALL, type(network.backbone).__name__, channels, height, width, len(layers) + 1, True))
    return sorted(targets, key=lambda layer: layer.is_features)


def resolve_layers(network: Network, names: Sequence[str] | None) -> list[TargetLayer]:
    """Return the layers with the given names in execution order. None selects the last layer.

    Raises:
        ExportError: a layer does not exist or has no spatial extent (the message suggests similar names), a name occurs twice, or the
            network has no layer with a spatial extent.
    """
    targets = list_layers(network)
    where = network.config.backbone
    if not targets:
        size = network.config.preprocessing
        raise ExportError(
            f"{where} has no layer with a spatial extent at an input of {size.height}x{size.width}, so there is nothing to map:"
            " use a larger --image-size, or --cam none"
        )
    if names is None:
        # `layer4`, `layer4.2` and `layer4.2.act3` return the same tensor: take the outermost, the last of them if there are several.
        same = [layer for layer in targets if layer.number == targets[-1].number]
        return [min(reversed(same), key=lambda layer: layer.name.count("."))]
    known = {layer.name: layer for layer in targets}
    for name in names:
        if name not in known:
            modules = dict(network.backbone.named_modules())
            reason = "has no output `[N, c, h, w]` with a spatial extent, once per image" if name in modules else "does not exist"
            near = difflib.get_close_matches(name, known, n=4, cutoff=0.4)
            hint = f"; similar names: {', '.join(near)}" if near else ""
            raise ExportError(
                f"--cam-layer {name}: in {where} this layer {reason}: choose from the {len(known)} of --list-cam-layers{hint}"
            )
    if len({*names}) != len(names):
        raise ExportError(f"--cam-layer names a layer twice ({', '.join(names)}): give each once")
    return [layer for layer in known.values() if layer.name in names]


@contextlib.contextmanager
def tapped(network: Network, names: Sequence[str], tap: Tap) -> Iterator[None]:
    """Pass the outputs of the named modules through `tap` within the block."""

    def hook(name: str, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return tap(name, output)

    handles = [network.backbone.get_submodule(name).register_forward_hook(partial(hook, name)) for name in names if name != FEATURES_CALL]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
