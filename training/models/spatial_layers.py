"""Layers with spatial feature maps, found by running the network and listed in execution order, and their maps for an image."""

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
from tlcli.training.models.feature_layout import FeatureLayout, possible_layouts
from tlcli.training.models.locality import is_local, probe_images
from tlcli.training.models.network import ImageNetwork, Network

_WIDER = 64
"""Pixels added to the input width to detect which dimension of a map grows. Every map grows by at least one column."""

_POOLS = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveAvgPool2d,
    nn.FractionalMaxPool2d,
    nn.LPPool2d,
)
_BY_DEFINITION = (nn.Conv2d, *_POOLS)
"""Modules whose output is always `[N, c, h, w]`."""


@dataclass(frozen=True)
class Layer:
    """Call of a module whose output is a spatial map for each channel.

    number: position in execution order, starting at 1. Layers that return the same tensor (a stage, its last block, the
        activation at the end of that block) share a number.
    label: name of the module in the backbone, with `:2` appended for its second call, and so on.
    module: name of the module in the backbone.
    kind: type of the module.
    channels: number of channels of the map.
    layout: where the output holds the map, and its height and width.
    pools: True for a pooling layer that reduces the number of positions.
    convolves: True for a convolution.
    is_features: True if the backbone returns this output unmodified as its features.
    """

    number: int
    label: str
    module: str
    kind: str
    channels: int
    layout: FeatureLayout
    pools: bool
    convolves: bool
    is_features: bool

    @property
    def height(self) -> int:
        """Height of the map."""
        return self.layout.height

    @property
    def width(self) -> int:
        """Width of the map."""
        return self.layout.width

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the map."""
        return self.channels, self.height, self.width


@dataclass(frozen=True)
class _Call:
    """Call of a module that returned a tensor of three or four dimensions.

    number: execution number as in `Layer`, but with gaps. inputs, outputs: shapes of the first argument and of the output.
    """

    number: int
    label: str
    name: str
    module: nn.Module
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def spatial_layers(network: ImageNetwork) -> list[Layer]:
    """Find the backbone's layers with spatial maps, in the order in which they finish: a stage follows its blocks.

    An output of four dimensions is a spatial map if exactly one of them grows in proportion when the input gets wider. This excludes
    attention weights and the output of global pooling. In a network with a fixed input size, an output is a spatial map if its size matches
    that of the most recent convolutions and pooling layers. All others, and tokens, are spatial maps if their positions correspond to
    positions of the image; see `tlcli.training.models.locality`.

    Args:
        network: network in eval mode.
    """
    height, width = network.config.preprocessing.height, network.config.preprocessing.width
    calls, last = _calls(network, height, width)
    try:
        wider = {call.label: call.outputs for call in _calls(network, height, width + _WIDER)[0]}
    except (RuntimeError, AssertionError, ValueError, IndexError):  # raised by networks built for a fixed size
        wider = {}
    layouts = _known_layouts(calls, wider, height, width)
    layouts |= _local_layouts(network, [call for call in calls if call.label not in layouts and (len(call.outputs) == 3 or not wider)])
    layers: list[Layer] = []
    numbers: dict[int, int] = {}
    for call in calls:
        layout = layouts.get(call.label)
        if layout is None:
            continue
        positions = layout.height * layout.width
        layers.append(
            Layer(
                number=numbers.setdefault(call.number, len(numbers) + 1),
                label=call.label,
                module=call.name,
                kind=type(call.module).__name__,
                channels=call.outputs[1 if layout.kind == "channels_first" else -1],
                layout=layout,
                pools=_is_pool(call.module) and len(call.inputs) == 4 and positions < call.inputs[2] * call.inputs[3],
                convolves=isinstance(call.module, nn.Conv2d),
                is_features=call.number == last,
            )
        )
    return layers


def _known_layouts(calls: Collection[_Call], wider: dict[str, tuple[int, ...]], height: int, width: int) -> dict[str, FeatureLayout]:
    """Return the layouts of outputs of four dimensions that their shapes prove, by label."""
    layouts: dict[str, FeatureLayout] = {}
    recent: list[tuple[int, ...]] = []  # the last two output sizes of convolutions and pooling layers
    for call in calls:
        if len(call.outputs) != 4:
            continue
        if isinstance(call.module, _BY_DEFINITION) and call.outputs[2:] not in ((1, 1), *recent):
            recent = [*recent[-1:], call.outputs[2:]]
        axis = _grown_axis(call.outputs, wider.get(call.label, ()), height, width) if wider else _axis_of_known_size(call.outputs, recent)
        if axis == 1:
            layouts[call.label] = FeatureLayout("channels_first", *call.outputs[2:])
        elif axis == 3:
            layouts[call.label] = FeatureLayout("channels_last", *call.outputs[1:3])
    return layouts


def _local_layouts(network: ImageNetwork, calls: Collection[_Call]) -> dict[str, FeatureLayout]:
    """Return the layouts of those outputs whose positions correspond to positions of the image, by label."""
    height, width = network.config.preprocessing.height, network.config.preprocessing.width
    prefix = int(getattr(network.backbone, "num_prefix_tokens", 0))
    possible = {call.label: [*possible_layouts(call.outputs, height, width, prefix)] for call in calls}
    if not any(possible.values()):
        return {}
    images = probe_images(height, width).to(network.device, network.dtype)
    layouts: dict[str, FeatureLayout] = {}

    def check(label: str, _name: str, _module: nn.Module, _input: object, output: object) -> None:
        if isinstance(output, Tensor) and len(output) == len(images):  # windows are in the batch dimension
            for layout in possible.get(label, ()):
                if is_local(output, layout):
                    layouts[label] = layout
                    return

    with _on_each_call(network.backbone, check), torch.no_grad():
        _run(network, images)
    return layouts


def record(network: ImageNetwork, image: npt.NDArray[np.uint8], layers: Collection[Layer]) -> dict[str, FloatArray]:
    """Run the network on an image and record the maps of the given layers.

    Args:
        network: network in eval mode.
        image: network input, uint8 `[H, W, 3]`, as returned by `Preprocessing.apply`.
        layers: layers returned by `spatial_layers(network)`.

    Returns:
        Output of each layer by label, float32 `[c, h, w]`. Outputs are copied when the layer finishes, so later in-place operations do
        not change them.
    """
    by_label = {layer.label: layer for layer in layers}
    maps: dict[str, FloatArray] = {}

    def keep(label: str, _name: str, _module: nn.Module, _input: object, output: object) -> None:
        if label in by_label and isinstance(output, Tensor):
            maps[label] = by_label[label].layout.to_map(output)[0].to("cpu", torch.float32, copy=True).contiguous().numpy()

    with _on_each_call(network.backbone, keep), torch.no_grad():
        _run(network, network.normalise(torch.from_numpy(image)[None].to(network.device)))
    return maps


def _run(network: ImageNetwork, inputs: Tensor) -> object:
    """Run the part of a network that is searched for layers: up to the features or, if it is run as a whole, up to the logits."""
    return network.features(inputs) if isinstance(network, Network) else network(inputs)


def _calls(network: ImageNetwork, height: int, width: int) -> tuple[list[_Call], int]:
    """Run the network on a blank image and return its module calls, and the number of the call that produced the features.

    The number is 0 if no module returns the features.
    """
    calls: list[_Call] = []
    seen: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}  # by tensor id: the tensor, its version, and the call that produced it

    def maker(tensor: Tensor) -> int:
        known, version, number = seen.get(id(tensor), (lambda: None, 0, 0))
        return number if known() is tensor and version == tensor._version else 0  # 0 for a new tensor, or one modified in place since

    def note(label: str, name: str, module: nn.Module, first_input: object, output: object) -> None:
        if not isinstance(output, Tensor) or output.ndim not in (3, 4) or len(output) != 1:
            return
        number = maker(output)
        if not number:
            number = len(calls) + 1
            seen[id(output)] = (weakref.ref(output), output._version, number)
        input_shape = tuple(first_input.shape) if isinstance(first_input, Tensor) else ()
        calls.append(_Call(number, label, name, module, input_shape, tuple(output.shape)))

    with _on_each_call(network.backbone, note), torch.no_grad():
        features = _run(network, torch.zeros(1, 3, height, width, device=network.device, dtype=network.dtype))
    return calls, maker(features) if isinstance(features, Tensor) else 0


@contextmanager
def _on_each_call(backbone: nn.Module, callback: Callable[[str, str, nn.Module, object, object], None]) -> Iterator[None]:
    """Call `callback(label, name, module, first argument, output)` after each call of each module."""
    counts: Counter[str] = Counter()

    def hook(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def on_end(module: nn.Module, args: tuple[object, ...], output: object) -> None:
            counts[name] += 1
            label = name if counts[name] == 1 else f"{name}:{counts[name]}"
            callback(label, name, module, args[0] if args else None, output)

        return on_end

    handles = [module.register_forward_hook(hook(name)) for name, module in backbone.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _grown_axis(shape: tuple[int, ...], wider: tuple[int, ...], height: int, width: int) -> int | None:
    """Return the channel axis, 1 or 3, by comparing the shape with that for a wider input. None if the output is not a spatial map."""
    if len(wider) != 4 or shape[0] != 1:
        return None
    grown = [axis for axis in range(4) if wider[axis] != shape[axis]]
    if grown not in ([3], [2]):
        return None
    axis = 1 if grown == [3] else 3
    rows, columns = shape[2:] if axis == 1 else shape[1:3]
    return axis if 0.5 < (rows * width) / (columns * height) < 2 else None


def _axis_of_known_size(shape: tuple[int, ...], sizes: Collection[tuple[int, ...]]) -> int | None:
    """Return the channel axis, 1 or 3, by comparing the shape with known map sizes. None if the output is not a spatial map."""
    if shape[0] != 1:
        return None
    first, last = shape[2:] in sizes, shape[1:3] in sizes
    return None if first == last else 1 if first else 3


def _is_pool(module: nn.Module) -> bool:
    """Return True if a module is a pooling layer. PyTorch's pooling layers are recognized by type, and timm's by name."""
    return isinstance(module, _POOLS) or ("pool" in type(module).__name__.lower() and next(module.parameters(), None) is None)
