"""The layers that maps can explain: modules of the backbone whose output is a map `[N, c, h, w]` of some extent."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from contract.errors import ExportError
from training.network import Network

FEATURES_CALL = "forward_features"
"""Names the backbone's features where no module of it returns them."""

Tap = Callable[[str, Tensor], Tensor]
"""Is given a layer's name and its output, and answers what the network goes on with."""


@dataclass(frozen=True)
class Spatial:
    """A layer as it is at the network's input size. kind: its class."""

    name: str
    kind: str
    channels: int
    height: int
    width: int


class Seen:
    """A tensor as it was when a layer returned it: what follows may write into it, and it is the same object still."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._version = tensor._version

    def is_still(self, other: Tensor) -> bool:
        """Whether it is `other`, and nothing was written into it since."""
        return self.tensor is other and other._version == self._version


def list_layers(network: Network) -> list[Spatial]:
    """Those that can be explained, in the order in which the network computes them; the backbone's features are last."""
    return [layer for layer, _ in _spatial(network)]


def resolve_layers(network: Network, names: Sequence[str] | None) -> list[Spatial]:
    """The layers of those names, in the order in which the network computes them; None takes the last one.

    Raises:
        ExportError: a layer that is not there or has no map, with those that could be meant; or none has one.
    """
    found = _spatial(network)
    where = network.config.backbone
    if not found:
        size = network.config.preprocessing
        raise ExportError(
            f"{where} has no layer with a spatial extent at an input of {size.height}x{size.width}, so there is nothing to map:"
            " choose a larger --image-size, or --methods none"
        )
    if names is None:
        # Several modules may return the same tensor: of `layer4`, `layer4.2` and `layer4.2.act3` the outermost, and the last of
        # those, since it may have worked in place.
        last = found[-1][1]
        same = [layer for layer, output in found if output.tensor is last.tensor and output.is_still(last.tensor)]
        return [min(reversed(same), key=lambda layer: layer.name.count("."))]
    known = {layer.name: layer for layer, _ in found}
    for name in names:
        if name not in known:
            there = dict(network.backbone.named_modules())
            reason = "gives no map `[N, c, h, w]` of some extent, once a picture" if name in there else "is not there"
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


def _spatial(network: Network) -> list[tuple[Spatial, Seen]]:
    size = network.config.preprocessing
    calls, features = _observe(network, size.height, size.width)
    channels_last = _channels_last(network, calls)
    found = []
    for name, outputs in calls.items():
        shape = outputs[0].tensor.shape
        if len(outputs) == 1 and name not in channels_last and shape[2] > 1 and shape[3] > 1:
            kind = type(network.backbone.get_submodule(name)).__name__
            found.append((Spatial(name, kind, *map(int, shape[1:])), outputs[0]))
    if features.shape[2] > 1 and features.shape[3] > 1 and not any(output.is_still(features) for _, output in found):
        found.append((Spatial(FEATURES_CALL, type(network.backbone).__name__, *map(int, features.shape[1:])), Seen(features)))
    return sorted(found, key=lambda one: one[1].is_still(features))


def _observe(network: Network, height: int, width: int) -> tuple[dict[str, list[Seen]], Tensor]:
    """Outputs of four dimensions by module, in the order in which they came, and the features, for one blank picture."""
    calls: dict[str, list[Seen]] = {}

    def note(name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            calls.setdefault(name, []).append(Seen(output))

    handles = [module.register_forward_hook(partial(note, name)) for name, module in network.backbone.named_modules() if name]
    try:
        with torch.no_grad():
            features = network.features(torch.zeros(1, 3, height, width))
    finally:
        for handle in handles:
            handle.remove()
    return calls, features


def _channels_last(network: Network, calls: dict[str, list[Seen]]) -> set[str]:
    """Modules whose output is `[N, h, w, c]`, as inside ConvNeXt's blocks: a wider picture widens their third dimension, not the last."""
    size = network.config.preprocessing
    try:
        wider, _ = _observe(network, size.height, size.width + 64)
    except (RuntimeError, AssertionError, ValueError, IndexError):
        return set()  # a network of one size
    return {name for name, outputs in calls.items() if name in wider and outputs[0].tensor.shape[2] != wider[name][0].tensor.shape[2]}
