"""Selection of the layers to show: layers named by the user, or layers that summarise the network."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import nn

from tlcli.contract.errors import SettingsError
from tlcli.training.models.spatial_layers import Layer

ALL = "all"
_NEAR = 5


def default_layers(backbone: nn.Module, layers: Sequence[Layer]) -> list[Layer]:
    """Select the stem, every pooling layer, and the last layer of each map size.

    The stem is the first convolution with its norm and activation. The last layer of each size is chosen from the sections of the
    network, see `_sections`, and not from inside the block that leads to the next size. Maps of one pixel are excluded.
    """
    if not layers:
        return []
    sections = _sections(backbone, layers)
    best_names = {layer.number: layer for layer in (*layers, *reversed(sections))}  # prefers a section, otherwise the outermost module
    last_of_size = {(layer.height, layer.width): layer.number for layer in sections}
    pools = {layer.number: layer for layer in layers if layer.pools}
    numbers = {_stem(layers), *last_of_size.values(), *pools}
    chosen = [pools.get(number, best_names[number]) for number in sorted(numbers)]
    return [layer for layer in chosen if layer.height * layer.width > 1]


def asked_layers(backbone: nn.Module, layers: Sequence[Layer], names: Sequence[str]) -> list[Layer]:
    """Select layers by name. A name is a layer label, a module (selects all its calls), or `all` (selects each output once).

    Raises:
        SettingsError: no layer has this name; the message lists similar names.
    """
    chosen: dict[str, Layer] = {}
    for name in names:
        named = distinct(layers) if name == ALL else [layer for layer in layers if name in (layer.label, layer.module)]
        if not named:
            raise SettingsError(_unknown(backbone, layers, name))
        chosen.update({layer.label: layer for layer in named})
    return [layer for layer in layers if layer.label in chosen]


def distinct(layers: Sequence[Layer]) -> list[Layer]:
    """Return each output once, as the layer that computed it."""
    first = {layer.number: layer for layer in reversed(layers)}
    return [first[number] for number in sorted(first)]


def convolutions(backbone: nn.Module, layers: Sequence[Layer], asked: Sequence[str], every: bool) -> list[Layer]:
    """Select the convolutions whose filters are shown, in execution order. A convolution that runs several times is selected once.

    Args:
        backbone: backbone that the layers belong to.
        layers: all layers of the backbone.
        asked: layer names, as in `asked_layers`, to restrict the selection to; empty for no restriction.
        every: True to select all convolutions. Unless layers are named, this includes the first convolution and those with kernels larger
            than one pixel. False to select only the first convolution of the network.
    """
    by_module = {layer.module: layer for layer in reversed(layers) if layer.convolves}
    ordered = sorted(by_module.values(), key=lambda layer: layer.number)
    modules = {layer.module for layer in asked_layers(backbone, layers, asked)} if asked else set(by_module)
    first = ordered[:1]
    if not every:
        return [layer for layer in first if layer.module in modules]
    named = {name for name in asked if name != ALL}
    return [
        layer for layer in ordered if layer.module in modules and (layer in first or named or kernel_shape(backbone, layer)[2:] != (1, 1))
    ]


def kernel_shape(backbone: nn.Module, layer: Layer) -> tuple[int, ...]:
    """Return the weight shape of a convolution: number of filters, input channels per group, height and width."""
    weight = backbone.get_submodule(layer.module).weight
    assert isinstance(weight, nn.Parameter)
    return tuple(weight.shape)


def _stem(layers: Sequence[Layer]) -> int:
    """Return the number of the layer that ends the stem.

    This is the last output in the same module as the first convolution, or in a module around it, before the next convolution, pooling
    layer or change of size.
    """
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


def _sections(backbone: nn.Module, layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers at the level of detail a person would list, in execution order.

    These are the child modules of the backbone. A plain `nn.Sequential` that spans several map sizes (VGG's `features`, the stages of
    ConvNeXt) and a module whose output is not a map are replaced by their own children.
    """
    by_module: dict[str, list[Layer]] = {}
    for layer in layers:
        by_module.setdefault(layer.module, []).append(layer)
    sections: list[Layer] = []

    def descend(path: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            full_name = f"{path}{name}"
            sizes = {layer.shape[1:] for below, _ in child.named_children() for layer in by_module.get(f"{full_name}.{below}", ())}
            if full_name not in by_module or (type(child) is nn.Sequential and len(sizes) > 1):
                descend(f"{full_name}.", child)
            else:
                sections.extend(by_module[full_name])

    descend("", backbone)
    return sorted(sections, key=layers.index)


def _unknown(backbone: nn.Module, layers: Sequence[Layer], name: str) -> str:
    labels = [layer.label for layer in layers]
    near = difflib.get_close_matches(name, labels, _NEAR, cutoff=0.5)
    near += [label for label in labels if name.lower() in label.lower() and label not in near]
    hint = f"near it: {', '.join(near[:_NEAR])}; " if near else ""
    if name in dict(backbone.named_modules()):
        return f"--layer {name}: its output is no map of height and width; {hint}--list-layers lists the layers that have maps"
    return f"--layer {name}: no such layer; {hint}--list-layers lists them all"
