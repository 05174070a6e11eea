"""Target layers of maps: modules of the backbone whose output holds a map `[N, c, h, w]`."""

from __future__ import annotations

import contextlib
import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from tlcli.contract.errors import ExportError
from tlcli.training.models.feature_layout import FeatureLayout
from tlcli.training.models.locality import probe_images
from tlcli.training.models.network import ImageNetwork, Network
from tlcli.training.models.spatial_layers import spatial_layers

FEATURES_CALL = "forward_features"
"""Layer name for the backbone's features if no single module returns them."""

Tap = Callable[[str, Tensor], Tensor]
"""Hook on a layer. It receives the layer's name and map `[N, c, h, w]`, and returns the map that replaces it."""


@dataclass(frozen=True)
class TargetLayer:
    """Layer that maps can explain.

    name: name of the module in the backbone.
    kind: class name of the module.
    channels: number of channels.
    layout: where the output holds the map, and its height and width at the network's input size.
    number: position in execution order; layers that return the same output share a number.
    is_features: True if the output is the backbone's features.
    """

    name: str
    kind: str
    channels: int
    layout: FeatureLayout
    number: int
    is_features: bool

    @property
    def height(self) -> int:
        """Height of the map."""
        return self.layout.height

    @property
    def width(self) -> int:
        """Width of the map."""
        return self.layout.width


def list_layers(network: ImageNetwork) -> list[TargetLayer]:
    """Return the layers that maps can explain in execution order, with the backbone's features last."""
    layers = spatial_layers(network)
    calls = Counter(layer.module for layer in layers)
    targets = [
        TargetLayer(layer.module, layer.kind, layer.channels, layer.layout, layer.number, layer.is_features)
        for layer in layers
        if calls[layer.module] == 1 and layer.height > 1 and layer.width > 1
    ]
    if isinstance(network, Network) and not any(layer.is_features for layer in targets):
        layout, channels = network.layout, network.feature_channels
        if layout.height > 1 and layout.width > 1:
            targets.append(TargetLayer(FEATURES_CALL, type(network.backbone).__name__, channels, layout, len(layers) + 1, True))
    return sorted(targets, key=lambda layer: layer.is_features)


def resolve_layers(network: ImageNetwork, names: Sequence[str] | None) -> list[TargetLayer]:
    """Return the layers with the given names in execution order. None selects the last layer that influences the logits.

    A layer of tokens may not influence the logits: after the last attention, only the class token does.

    Raises:
        ExportError: a layer does not exist or has no spatial extent (the message suggests similar names), a name occurs twice, a layer does
            not influence the logits, or the network has no layer with a spatial extent.
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
        return [_default_layer(network, targets)]
    known = {layer.name: layer for layer in targets}
    for name in names:
        if name not in known:
            modules = dict(network.backbone.named_modules())
            reason = "has no output with a map `[N, c, h, w]`, once per image" if name in modules else "does not exist"
            near = difflib.get_close_matches(name, known, n=4, cutoff=0.4)
            hint = f"; similar names: {', '.join(near)}" if near else ""
            raise ExportError(
                f"--cam-layer {name}: in {where} this layer {reason}: choose from the {len(known)} of --list-cam-layers{hint}"
            )
    if len({*names}) != len(names):
        raise ExportError(f"--cam-layer names a layer twice ({', '.join(names)}): name each layer once")
    chosen = [layer for layer in known.values() if layer.name in names]
    reached = _influential(network, [layer for layer in chosen if layer.layout.kind == "tokens"])
    for layer in chosen:
        if layer.layout.kind == "tokens" and layer.name not in reached:
            raise ExportError(
                f"--cam-layer {layer.name}: in {where} the scores do not depend on this layer's patches, so its maps"
                f" would be empty: choose an earlier layer, such as {_default_layer(network, targets).name}"
            )
    return chosen


def _default_layer(network: ImageNetwork, targets: Sequence[TargetLayer]) -> TargetLayer:
    """Return the last layer that influences the logits and has as many channels as the last layer, in its outermost module.

    Of tokens, only blocks and normalization layers are considered, and not, for example, the keys of an attention.
    """
    modules = dict(network.backbone.named_modules())
    suitable = [layer for layer in targets if layer.layout.kind != "tokens" or _is_block_or_norm(modules.get(layer.name))] or [*targets]
    candidates = [layer for layer in suitable if layer.channels == suitable[-1].channels]
    if suitable[-1].layout.kind == "tokens" or not suitable[-1].is_features:
        reached = _influential(network, candidates)
        candidates = [layer for layer in candidates if layer.name in reached] or [suitable[-1]]
    # `layer4`, `layer4.2` and `layer4.2.act3` return the same tensor: take the outermost, the last of them if there are several.
    same = [layer for layer in candidates if layer.number == candidates[-1].number]
    return min(reversed(same), key=lambda layer: layer.name.count("."))


def _is_block_or_norm(module: nn.Module | None) -> bool:
    """Return True for a module with submodules, a normalization layer, and None, which represents the backbone's features."""
    return module is None or any(True for _ in module.children()) or "norm" in type(module).__name__.lower()


def _influential(network: ImageNetwork, targets: Sequence[TargetLayer]) -> set[str]:
    """Return the names of the layers whose maps influence the logits: the gradient of some logit is not zero at some position."""
    if not targets:
        return set()
    maps: dict[str, Tensor] = {}

    def watch(name: str, output: Tensor) -> Tensor:
        maps[name] = output if output.requires_grad else output.detach().requires_grad_()
        return maps[name] * 1  # later layers may work in place

    size = network.config.preprocessing
    image = probe_images(size.height, size.width)[:1].to(network.device, network.dtype)
    with torch.enable_grad():
        logits = run_tapped(network, image, targets, watch)
        gradients = torch.autograd.grad((logits * logits.detach().cos()).sum(), [*maps.values()], allow_unused=True)
    return {name for name, gradient in zip(maps, gradients, strict=True) if gradient is not None and bool(gradient.abs().max() > 0)}


def run_tapped(network: ImageNetwork, inputs: Tensor, layers: Sequence[TargetLayer], tap: Tap) -> Tensor:
    """Compute the logits `[N, C]` for normalized inputs, and pass the layers' maps through `tap`."""
    with tapped(network, layers, tap):
        if not isinstance(network, Network):
            return cast("Tensor", network(inputs))
        return network.classify(network.embed(tapped_features(network, inputs, layers, tap)))


def tapped_features(network: Network, inputs: Tensor, layers: Sequence[TargetLayer], tap: Tap) -> Tensor:
    """Compute the features for normalized inputs. If they are among the layers, but no module returns them, pass them through `tap`."""
    features = network.features(inputs)
    for layer in layers:
        if layer.name == FEATURES_CALL:
            features = layer.layout.with_map(features, tap(layer.name, layer.layout.to_map(features)))
    return features


@contextlib.contextmanager
def tapped(network: ImageNetwork, layers: Sequence[TargetLayer], tap: Tap) -> Iterator[None]:
    """Pass the maps of the layers through `tap` within the block, except for features that no module returns."""

    def hook(layer: TargetLayer, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return layer.layout.with_map(output, tap(layer.name, layer.layout.to_map(output)))

    modules = [(layer, network.backbone.get_submodule(layer.name)) for layer in layers if layer.name != FEATURES_CALL]
    handles = [module.register_forward_hook(partial(hook, layer)) for layer, module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
