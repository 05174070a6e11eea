"""Which layers to show: those that a person asked for, or those that tell what the network does."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import nn

from tlcli.contract.errors import SettingsError
from tlcli.training.models.spatial_layers import Layer

ALL = "all"
_NEAR = 5


def default_layers(backbone: nn.Module, layers: Sequence[Layer]) -> list[Layer]:
    """The stem, every pooling layer, and the last layer of each size of map.

    The stem is the first convolution with its norm and activation. The last layer of a size is looked for among the
    parts of the network, see `_parts`: not inside the block that goes on to the next size. Maps of one
    pixel are left out.
    """
    if not layers:
        return []
    parts = _parts(backbone, layers)
    best_names = {layer.number: layer for layer in (*layers, *reversed(parts))}  # a part, else the outermost
    last_of_size = {(layer.height, layer.width): layer.number for layer in parts}
    pools = {layer.number: layer for layer in layers if layer.pools}
    numbers = {_stem(layers), *last_of_size.values(), *pools}
    chosen = [pools.get(number, best_names[number]) for number in sorted(numbers)]
    return [layer for layer in chosen if layer.height * layer.width > 1]


def asked_layers(backbone: nn.Module, layers: Sequence[Layer], names: Sequence[str]) -> list[Layer]:
    """The layers that are named: by label, or by module, which means all its calls; `all`: each output once.

    Raises:
        SettingsError: no such layer; the message lists what is near.
    """
    chosen: dict[str, Layer] = {}
    for name in names:
        found = distinct(layers) if name == ALL else [layer for layer in layers if name in (layer.label, layer.module)]
        if not found:
            raise SettingsError(_unknown(backbone, layers, name))
        chosen.update({layer.label: layer for layer in found})
    return [layer for layer in layers if layer.label in chosen]


def distinct(layers: Sequence[Layer]) -> list[Layer]:
    """Each output once, under the name of the layer that computed it."""
    first = {layer.number: layer for layer in reversed(layers)}
    return [first[number] for number in sorted(first)]


def convolutions(backbone: nn.Module, layers: Sequence[Layer], asked: Sequence[str], every: bool) -> list[Layer]:
    """The convolutions whose filters to show, in the order of execution, each once however often it runs.

    Args:
        backbone: of the layers.
        layers: all of them.
        asked: names as in `asked_layers`; if there are any, only their convolutions count.
        every: all of these; without names, all with kernels of more than one pixel. Else the network's first alone, if it is asked for.
    """
    found = {layer.module: layer for layer in reversed(layers) if layer.convolves}
    ordered = sorted(found.values(), key=lambda layer: layer.number)
    modules = {layer.module for layer in asked_layers(backbone, layers, asked)} if asked else set(found)
    first = ordered[:1]
    if not every:
        return [layer for layer in first if layer.module in modules]
    named = {name for name in asked if name != ALL}
    return [
        layer for layer in ordered if layer.module in modules and (layer in first or named or kernel_shape(backbone, layer)[2:] != (1, 1))
    ]


def kernel_shape(backbone: nn.Module, layer: Layer) -> tuple[int, ...]:
    """Of a convolution's weight: filters, input channels of a group, height, width."""
    weight = backbone.get_submodule(layer.module).weight
    assert isinstance(weight, nn.Parameter)
    return tuple(weight.shape)


def _stem(layers: Sequence[Layer]) -> int:
    """The number of the last output beside the first convolution, or around it, before another convolution or pooling layer."""
    first = next((layer for layer in layers if layer.convolves), layers[0])
    home = f"{_parent(first.module)}."
    number = first.number
    for layer in layers:
        if layer.number > first.number and (layer.convolves or layer.pools or layer.shape[1:] != first.shape[1:]):
            break
        if home.startswith(f"{_parent(layer.module)}.".lstrip(".")):
            number = layer.number
    return number


def _parent(module: str) -> str:
    return module.rpartition(".")[0]


def _parts(backbone: nn.Module, layers: Sequence[Layer]) -> list[Layer]:
    """The layers as a person would list them, in the order of execution.

    The backbone's own children; instead of a plain sequence that goes through several sizes (VGG's `features`, the
    stages of a ConvNeXt), and of what has no map as its output, its children.
    """
    by_module: dict[str, list[Layer]] = {}
    for layer in layers:
        by_module.setdefault(layer.module, []).append(layer)
    found: list[Layer] = []

    def descend(path: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            here = f"{path}{name}"
            sizes = {layer.shape[1:] for below, _ in child.named_children() for layer in by_module.get(f"{here}.{below}", ())}
            if here not in by_module or (type(child) is nn.Sequential and len(sizes) > 1):
                descend(f"{here}.", child)
            else:
                found.extend(by_module[here])

    descend("", backbone)
    return sorted(found, key=layers.index)


def _unknown(backbone: nn.Module, layers: Sequence[Layer], name: str) -> str:
    labels = [layer.label for layer in layers]
    near = difflib.get_close_matches(name, labels, _NEAR, cutoff=0.5)
    near += [label for label in labels if name.lower() in label.lower() and label not in near]
    hint = f"near it: {', '.join(near[:_NEAR])}; " if near else ""
    if name in dict(backbone.named_modules()):
        return f"--layer {name}: its output is no map of height and width; {hint}--list-layers lists the layers that have maps"
    return f"--layer {name}: no such layer; {hint}--list-layers lists them all"
