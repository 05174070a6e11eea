"""The layers that maps can explain: modules of the backbone whose output is a map `[N, c, h, w]` of some extent."""

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
"""Names the backbone's features where no module of it returns them."""

Tap = Callable[[str, Tensor], Tensor]
"""Is given a layer's name and its output, and answers what the network goes on with."""


@dataclass(frozen=True)
class Spatial:
    """A layer as it is at the network's input size.

    kind: its class.
    number: its place in the order of execution; layers that hand on the same output share it.
    is_features: what it returns is what the backbone answers as its features.
    """

    name: str
    kind: str
    channels: int
    height: int
    width: int
    number: int
    is_features: bool


def list_layers(network: Network) -> list[Spatial]:
    """Those that can be explained, in the order in which the network computes them; the backbone's features are last."""
    layers = spatial_layers(network)
    calls = Counter(layer.module for layer in layers)
    found = [
        Spatial(layer.module, layer.kind, *layer.shape, layer.number, layer.is_features)
        for layer in layers
        if calls[layer.module] == 1 and not layer.channels_last and layer.height > 1 and layer.width > 1
    ]
    if not any(layer.is_features for layer in found):
        size = network.config.preprocessing
        with torch.no_grad():
            channels, height, width = network.features(torch.zeros(1, 3, size.height, size.width)).shape[1:]
        if height > 1 and width > 1:
            found.append(Spatial(FEATURES_CALL, type(network.backbone).__name__, channels, height, width, len(layers) + 1, True))
    return sorted(found, key=lambda layer: layer.is_features)


def resolve_layers(network: Network, names: Sequence[str] | None) -> list[Spatial]:
    """The layers of those names, in the order in which the network computes them; None takes the last one.

    Raises:
        ExportError: a layer that is not there or has no map, with those that could be meant; or none has one.
    """
    found = list_layers(network)
    where = network.config.backbone
    if not found:
        size = network.config.preprocessing
        raise ExportError(
            f"{where} has no layer with a spatial extent at an input of {size.height}x{size.width}, so there is nothing to map:"
            " choose a larger --image-size, or --cam none"
        )
    if names is None:
        # Of `layer4`, `layer4.2` and `layer4.2.act3`, which return the same tensor, the outermost; of several the last.
        same = [layer for layer in found if layer.number == found[-1].number]
        return [min(reversed(same), key=lambda layer: layer.name.count("."))]
    known = {layer.name: layer for layer in found}
    for name in names:
        if name not in known:
            there = dict(network.backbone.named_modules())
            reason = "gives no map `[N, c, h, w]` of some extent, once an image" if name in there else "is not there"
            near = difflib.get_close_matches(name, known, n=4, cutoff=0.4)
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise ExportError(f"--cam-layer {name}: {where}'s layer {reason}: `--list-cam-layers` lists the {len(known)} there are{hint}")
    if len({*names}) != len(names):
        raise ExportError(f"--cam-layer names a layer twice: {', '.join(names)}")
    return [layer for layer in known.values() if layer.name in names]


@contextlib.contextmanager
def tapped(network: Network, names: Sequence[str], tap: Tap) -> Iterator[None]:
    """While open, `tap` stands behind the modules of those names."""

    def behind(name: str, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return tap(name, output)

    handles = [network.backbone.get_submodule(name).register_forward_hook(partial(behind, name)) for name in names if name != FEATURES_CALL]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
