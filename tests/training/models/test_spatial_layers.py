"""Layers with spatial maps: their order, their maps, and the selection of layers to show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlcli.contract.errors import SettingsError
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training.models.network import Network, NetworkConfig
from tlcli.training.models.spatial_layers import record, spatial_layers
from tlcli.training.visualize.select_layers import asked_layers, convolutions, default_layers, distinct

SIZE = 16


class Odd(nn.Module):
    """Backbone with everything that makes maps hard to find."""

    num_features = 6
    pretrained_cfg = {"input_size": (3, SIZE, SIZE)}  # noqa: RUF012

    def __init__(self, one_size: bool = False) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 2)  # defined first, but not part of the features
        self.last = nn.Conv2d(5, 6, 3, padding=1)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.same = nn.Identity()
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.dense = nn.Linear(4, 5)
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Conv2d(5, 5, 1)
        self.attention = nn.Softmax(-1)
        self.one_size = one_size

    def forward_features(self, x: Tensor) -> Tensor:
        if self.one_size and x.shape[-1] != SIZE:
            raise RuntimeError(f"built for {SIZE}")
        x = self.same(self.relu(self.conv(x)))
        x = self.pool(self.relu(self.second(x)))
        x = self.dense(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = x * self.gate(self.squeeze(x))
        tokens = x.flatten(2)
        weights = self.attention(tokens.transpose(1, 2) @ tokens).unsqueeze(1)  # [N, positions, positions]
        heads = self.attention(weights.expand(-1, 2, -1, -1))  # [N, heads, positions, positions]
        return self.last((tokens @ heads.mean(1)).reshape(x.shape))  # type: ignore[no-any-return]

    def reset_classifier(self, num_classes: int) -> None:
        self.fc = nn.Linear(6, num_classes)

    def get_classifier(self) -> nn.Linear:
        return self.fc


def network(backbone: Any, size: int = SIZE) -> Network:
    torch.manual_seed(0)
    net = timm.create_model(backbone) if isinstance(backbone, str) else backbone
    preprocessing = Preprocessing(height=size, width=size)
    built = NetworkConfig(backbone=str(backbone), head="linear", num_classes=2, preprocessing=preprocessing)
    return Network(built, net).eval().requires_grad_(False)


def image(size: int = SIZE) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("one_size", [False, True])
def test_layers_with_maps_are_found_in_the_order_of_execution(one_size: bool) -> None:
    layers = spatial_layers(network(Odd(one_size)))
    assert [(layer.label, layer.shape) for layer in layers] == [
        ("conv", (4, 16, 16)), ("relu", (4, 16, 16)), ("same", (4, 16, 16)), ("second", (4, 16, 16)), ("relu:2", (4, 16, 16)),
        ("pool", (4, 8, 8)), ("dense", (5, 8, 8)), ("last", (6, 8, 8)),
    ]  # fmt: skip
    assert [layer.number for layer in layers] == [1, 2, 2, 3, 4, 5, 6, 7], "layers with the same output share a number"
    assert [layer.label for layer in layers if layer.layout.kind == "channels_last"] == ["dense"]
    assert [layer.label for layer in layers if layer.pools] == ["pool"]
    assert [layer.label for layer in distinct(layers)] == ["conv", "relu", "second", "relu:2", "pool", "dense", "last"]


def test_maps_are_the_outputs_of_each_layer_when_it_finished() -> None:
    """Compares with separately computed outputs. The ReLU works in place and would change a later copy of the convolution's output."""
    net, photo = network(Odd()), image()
    recorded = record(net, photo, spatial_layers(net))
    odd: Any = net.backbone
    inputs = net.normalise(torch.from_numpy(photo)[None])
    conv = F.conv2d(inputs, odd.conv.weight, odd.conv.bias, padding=1)
    second = F.conv2d(conv.clamp(min=0), odd.second.weight, odd.second.bias, padding=1)
    pool = F.max_pool2d(second.clamp(min=0), 2)
    dense = torch.einsum("nchw,dc->ndhw", pool, odd.dense.weight) + odd.dense.bias[:, None, None]
    expected = {"conv": conv, "relu": conv.clamp(min=0), "second": second, "relu:2": second.clamp(min=0), "pool": pool, "dense": dense}
    assert (conv < 0).any()
    for label, values in expected.items():
        assert recorded[label].dtype == np.float32
        np.testing.assert_allclose(recorded[label], values[0].numpy(), atol=1e-5, err_msg=label)
    assert (recorded["same"] == recorded["relu"]).all()


def test_recording_leaves_the_network_unchanged() -> None:
    net = network(Odd())
    inputs = net.normalise(torch.from_numpy(image())[None])
    before = net.features(inputs)
    record(net, image(), spatial_layers(net))
    assert not any(module._forward_hooks for module in net.modules())
    assert torch.equal(net.features(inputs), before)


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("resnet18", ["act1", "maxpool", "layer1", "layer2", "layer3", "layer4"]),
        ("mobilenetv2_050", ["bn1", "blocks.0", "blocks.1", "blocks.2", "blocks.4", "bn2"]),
        ("convnext_atto", ["stem", "stages.0", "stages.1", "stages.2", "stages.3"]),
        (
            "densenet121",
            [
                "features.norm0", "features.pool0", "features.denseblock1", "features.transition1.pool", "features.denseblock2",
                "features.transition2.pool", "features.denseblock3", "features.transition3.pool", "features.norm5",
            ],
        ),
    ],
)  # fmt: skip
def test_the_default_layers_are_the_stem_the_pools_and_the_last_of_each_size(backbone: str, expected: list[str]) -> None:
    net = network(backbone, 64)
    assert [layer.label for layer in default_layers(net.backbone, spatial_layers(net))] == expected


def test_maps_of_one_pixel_are_shown_only_on_request() -> None:
    net = network("resnet18", 32)
    layers = spatial_layers(net)
    assert {layer.shape for layer in layers} >= {(512, 1, 1)}
    assert [layer.label for layer in default_layers(net.backbone, layers)] == ["act1", "maxpool", "layer1", "layer2", "layer3"]
    assert asked_layers(net.backbone, layers, ["layer4"])[0].shape == (512, 1, 1)


def test_channels_last_maps_are_transposed() -> None:
    """Compares with the block's arithmetic: the maps of the depthwise convolution, normalized over the channels."""
    net = network(timm.create_model("convnext_atto", conv_mlp=False), 64)
    layers = spatial_layers(net)
    norm = next(layer for layer in layers if layer.label == "stages.1.blocks.0.norm")
    assert norm.layout.kind == "channels_last"
    assert norm.shape == (80, 8, 8)
    recorded = record(net, image(64), layers)
    before = recorded["stages.1.blocks.0.conv_dw"].transpose(1, 2, 0)
    centred = before - before.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(recorded[norm.label], expected.transpose(2, 0, 1), atol=1e-4)


def test_layers_are_selected_by_label_module_or_all() -> None:
    net = network(Odd())
    layers = spatial_layers(net)

    def labels(*names: str) -> list[str]:
        return [layer.label for layer in asked_layers(net.backbone, layers, names)]

    assert labels("pool", "conv") == ["conv", "pool"], "in the order of execution, not of the arguments"
    assert labels("relu:2") == ["relu:2"]
    assert labels("relu") == ["relu", "relu:2"], "a module means all its calls"
    assert labels("all") == ["conv", "relu", "second", "relu:2", "pool", "dense", "last"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("secnd", r"--layer secnd: no such layer; near it: second; --list-layers lists them all"),
        ("LU", r"--layer LU: no such layer; near it: relu.*; --list-layers lists them all"),
        ("xyz", r"--layer xyz: no such layer; --list-layers lists them all"),
        ("fc", r"--layer fc: its output is no map of height and width; .*--list-layers lists the layers that have maps"),
        ("gate", r"--layer gate: its output is no map"),
    ],
)
def test_an_unknown_layer_is_reported_in_one_line(name: str, message: str) -> None:
    net = network(Odd())
    with pytest.raises(SettingsError, match=message) as error:
        asked_layers(net.backbone, spatial_layers(net), ["conv", name])
    assert "\n" not in str(error.value)


def test_selection_of_filters() -> None:
    net = network("resnet18", 32)
    layers = spatial_layers(net)

    def labels(*asked: str, every: bool) -> list[str]:
        return [layer.label for layer in convolutions(net.backbone, layers, asked, every)]

    assert labels(every=False) == ["conv1"]
    every = labels(every=True)
    assert every[:2] == ["conv1", "layer1.0.conv1"]
    assert len(every) == 17
    assert "layer2.0.downsample.0" not in every, "1x1 kernels are drawn only on request"
    assert labels("layer2.0.downsample.0", "layer1", every=True) == ["layer2.0.downsample.0"]
    assert labels("layer1", "conv1", every=False) == ["conv1"]
    assert labels("layer1", every=False) == []
