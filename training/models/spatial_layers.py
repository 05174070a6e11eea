"""What the layers of a network answer: which of them have maps, in the order in which they run, and the maps of one image."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tlcli.contract.images.heatmap import FloatArray
from tlcli.training.models.network import Network

_WIDER = 64
"""Pixels added to the input to see which dimension is the width: at least one column of every map."""

_POOLS = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveAvgPool2d,
    nn.FractionalMaxPool2d,
    nn.LPPool2d,
)
_BY_DEFINITION = (nn.Conv2d, *_POOLS)
"""Their output is `[N, c, h, w]`, whatever else a network does."""


@dataclass(frozen=True)
class Layer:
    """A layer with maps: a module whose output is a map a channel, at one of its calls.

    number: its place in the order of execution, from 1. Layers that hand on the same output (a stage, its last block,
        the activation at the end of that) share the number.
    label: the module's name in the backbone; `:2` is added at its second call, and so on.
    module: the name alone.
    kind: the module's type.
    channels, height, width: of the output.
    channels_last: the output is `[N, h, w, c]`.
    pools: a pooling layer from which fewer positions come out than go in.
    convolves: a convolution.
    is_features: the output is what the backbone answers as its features, as it was when the layer ended.
    """

    number: int
    label: str
    module: str
    kind: str
    channels: int
    height: int
    width: int
    channels_last: bool
    pools: bool
    convolves: bool
    is_features: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.channels, self.height, self.width


@dataclass(frozen=True)
class _Call:
    """A call of a module that answered a tensor of four dimensions. number: as in `Layer`, gaps left."""

    number: int
    label: str
    name: str
    module: nn.Module
    came: tuple[int, ...]
    went: tuple[int, ...]


def spatial_layers(network: Network) -> list[Layer]:
    """The layers of the backbone with maps, in the order in which they end: a stage after its blocks.

    A map is an output that grows to the side when the input does, in one dimension and in proportion: neither
    what is left of an image after global pooling nor the weights of an attention. Where the network is built for
    one size, only layers of the sizes that its last convolutions and pools gave count.

    Args:
        network: in eval mode.
    """
    height, width = network.config.preprocessing.height, network.config.preprocessing.width
    calls, last = _calls(network, height, width)
    try:
        wider = {call.label: call.went for call in _calls(network, height, width + _WIDER)[0]}
    except (RuntimeError, AssertionError, ValueError, IndexError):  # what networks built for one size raise
        wider = {}
    layers: list[Layer] = []
    recent: list[tuple[int, ...]] = []  # the sizes that convolutions and pools gave, the last two
    numbers: dict[int, int] = {}
    for call in calls:
        if isinstance(call.module, _BY_DEFINITION) and call.went[2:] not in ((1, 1), *recent):
            recent = [*recent[-1:], call.went[2:]]
        axis = _grown_axis(call.went, wider.get(call.label, ()), height, width) if wider else _axis_of_known_size(call.went, recent)
        if axis is None:
            continue
        _, *shape = call.went
        channels = shape.pop(axis - 1)
        layers.append(
            Layer(
                number=numbers.setdefault(call.number, len(numbers) + 1),
                label=call.label,
                module=call.name,
                kind=type(call.module).__name__,
                channels=channels,
                height=shape[0],
                width=shape[1],
                channels_last=axis == 3,
                pools=_is_pool(call.module) and len(call.came) == 4 and shape[0] * shape[1] < call.came[2] * call.came[3],
                convolves=isinstance(call.module, nn.Conv2d),
                is_features=call.number == last,
            )
        )
    return layers


def record(network: Network, image: npt.NDArray[np.uint8], layers: Collection[Layer]) -> dict[str, FloatArray]:
    """The maps of one image.

    Args:
        network: in eval mode.
        image: uint8 `[H, W, 3]`, as `Preprocessing.apply` gives it.
        layers: of `spatial_layers(network)`.

    Returns:
        For each layer's label its output, float32 `[c, h, w]`, as it was when the layer ended: what a later layer
        does to it in place does not show.
    """
    wanted = {layer.label: layer for layer in layers}
    found: dict[str, FloatArray] = {}

    def keep(label: str, _name: str, _module: nn.Module, _came: object, went: object) -> None:
        if label in wanted and isinstance(went, Tensor):
            values = went[0].permute(2, 0, 1) if wanted[label].channels_last else went[0]
            found[label] = values.to("cpu", torch.float32, copy=True).contiguous().numpy()

    with _watched(network.backbone, keep), torch.no_grad():
        network.features(network.normalise(torch.from_numpy(image)[None].to(network.device)))
    return found


def _calls(network: Network, height: int, width: int) -> tuple[list[_Call], int]:
    """What runs on a blank image, and the number of who made the features: 0 where no module answers them."""
    calls: list[_Call] = []
    seen: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}  # by id: the tensor, its version, the number of who made it

    def maker(tensor: Tensor) -> int:
        known, version, number = seen.get(id(tensor), (lambda: None, 0, 0))
        return number if known() is tensor and version == tensor._version else 0  # else another tensor, or changed in place since

    def note(label: str, name: str, module: nn.Module, came: object, went: object) -> None:
        if not isinstance(went, Tensor) or went.ndim != 4:
            return
        number = maker(went)
        if not number:
            number = len(calls) + 1
            seen[id(went)] = (weakref.ref(went), went._version, number)
        calls.append(_Call(number, label, name, module, tuple(came.shape) if isinstance(came, Tensor) else (), tuple(went.shape)))

    with _watched(network.backbone, note), torch.no_grad():
        features = network.features(torch.zeros(1, 3, height, width, device=network.device))
    return calls, maker(features)


@contextmanager
def _watched(backbone: nn.Module, tell: Callable[[str, str, nn.Module, object, object], None]) -> Iterator[None]:
    """Tell of each call of each module when it ends: label, name, module, first argument, answer."""
    counts: Counter[str] = Counter()

    def hook(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def on_end(module: nn.Module, came: tuple[object, ...], went: object) -> None:
            counts[name] += 1
            label = name if counts[name] == 1 else f"{name}:{counts[name]}"
            tell(label, name, module, came[0] if came else None, went)

        return on_end

    handles = [module.register_forward_hook(hook(name)) for name, module in backbone.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _grown_axis(shape: tuple[int, ...], wider: tuple[int, ...], height: int, width: int) -> int | None:
    """Where the channels are, given the shape for a wider input too: 1, 3, or None if it is no map."""
    if len(wider) != 4 or shape[0] != 1:
        return None
    grown = [axis for axis in range(4) if wider[axis] != shape[axis]]
    if grown not in ([3], [2]):
        return None
    axis = 1 if grown == [3] else 3
    rows, columns = shape[2:] if axis == 1 else shape[1:3]
    return axis if 0.5 < (rows * width) / (columns * height) < 2 else None


def _axis_of_known_size(shape: tuple[int, ...], sizes: Collection[tuple[int, ...]]) -> int | None:
    """Likewise, given the sizes of maps that are certain."""
    if shape[0] != 1:
        return None
    first, last = shape[2:] in sizes, shape[1:3] in sizes
    return None if first == last else 1 if first else 3


def _is_pool(module: nn.Module) -> bool:
    """Ours to tell by its type, or a layer of timm's by its name."""
    return isinstance(module, _POOLS) or ("pool" in type(module).__name__.lower() and next(module.parameters(), None) is None)
