"""SimpleCNN, LeNet-5 and ZFNet: layer sizes of their papers."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

import tlcli.training.models.zoo  # noqa: F401 - registers them

LENET5 = {"c1": 6 * (1 * 25 + 1), "c3": 16 * (6 * 25 + 1), "c5": 120 * (16 * 25 + 1), "f6": 84 * (120 + 1), "output": 10 * (84 + 1)}
"""Numbers of parameters; as in the paper, except for C3, which is only partly connected there."""

SIMPLE = ((3, 32), (32, 64), (64, 128))
"""Input and output channels of each block, which has two convolutions with a batch norm each."""

ZFNET = {
    "conv1": (96, 7 * 7 * 3),
    "conv2": (256, 5 * 5 * 96),
    "conv3": (384, 9 * 256),
    "conv4": (384, 9 * 384),
    "conv5": (256, 9 * 384),
    "fc6": (4096, 6 * 6 * 256),
    "fc7": (4096, 4096),
    "fc8": (1000, 4096),
}
"""Number of outputs, and of weights per output without the bias."""


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def output_sizes(model: nn.Module, *shape: int) -> dict[str, list[int]]:
    """Return the output size of every leaf layer by its path, in the order of execution."""
    sizes: dict[str, list[int]] = {}
    for path, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, __, output, name=path: sizes.update({name: list(output.shape[1:])}))
    model.eval()(torch.zeros(1, *shape))
    return sizes


def test_lenet5s_layers_are_the_papers() -> None:
    model: Any = timm.create_model("lenet5", in_chans=1)
    assert parameters(model) == 61_706
    layers = {**dict(model.features.named_children()), **dict(model.classifier.named_children())}
    assert {name: parameters(layer) for name, layer in layers.items() if parameters(layer)} == LENET5
    sizes = output_sizes(model, 1, 32, 32)
    named = {name: sizes[f"features.{name}"] for name in ("c1", "s2", "c3", "s4")}
    assert named == {"c1": [6, 28, 28], "s2": [6, 14, 14], "c3": [16, 10, 10], "s4": [16, 5, 5]}
    assert {name: sizes[f"classifier.{name}"] for name in ("c5", "f6", "output")} == {"c5": [120], "f6": [84], "output": [10]}


@torch.no_grad()
def test_lenet5s_c5_is_a_convolution_that_covers_the_map() -> None:
    model: Any = timm.create_model("lenet5").eval()
    features = torch.randn(2, 16, 5, 5, generator=torch.Generator().manual_seed(0))
    kernels = model.classifier.c5.weight.view(120, 16, 5, 5)
    hidden = torch.conv2d(features, kernels, model.classifier.c5.bias).relu().flatten(1)
    hidden = (hidden @ model.classifier.f6.weight.T + model.classifier.f6.bias).relu()
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), hidden)


def test_zfnets_layers_are_the_papers() -> None:
    model = timm.create_model("zfnet")
    assert parameters(model) == sum(outputs * (weights + 1) for outputs, weights in ZFNET.values()) == 62_357_608
    sizes = output_sizes(model, 3, 224, 224)
    maps = {name.removeprefix("features."): size for name, size in sizes.items() if "conv" in name or "pool" in name}
    assert maps == {
        "conv1": [96, 110, 110],
        "pool1": [96, 55, 55],
        "conv2": [256, 26, 26],
        "pool2": [256, 13, 13],
        "conv3": [384, 13, 13],
        "conv4": [384, 13, 13],
        "conv5": [256, 13, 13],
        "pool5": [256, 6, 6],
        "avgpool": [256, 6, 6],
    }
    assert [sizes[f"classifier.{name}"] for name in ("fc6", "fc7", "fc8")] == [[4096], [4096], [1000]]


@pytest.mark.parametrize("size", [8, 28, 32, 100])
def test_simple_cnn_halves_images_of_any_size_three_times(size: int) -> None:
    model = timm.create_model("simple_cnn")
    weights = [9 * outputs * (inputs + outputs) for inputs, outputs in SIMPLE]
    assert parameters(model) == sum(weights) + sum(2 * 2 * outputs for _, outputs in SIMPLE) + 10 * (128 + 1)
    sizes = output_sizes(model, 3, size, size)
    assert [sizes[f"features.{number}.pool"] for number in range(3)] == [[c, size // n, size // n] for c, n in ((32, 2), (64, 4), (128, 8))]


def test_simple_cnn_needs_thirteen_million_multiplications_for_a_digit() -> None:
    model = timm.create_model("simple_cnn")
    sizes = output_sizes(model, 3, 28, 28)
    positions = {name: sizes[name][1] * sizes[name][2] for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert round(sum(parameters(model.get_submodule(name)) * count for name, count in positions.items()), -6) == 13_000_000


def test_simple_cnn_uses_dropout_only_in_training() -> None:
    torch.manual_seed(0)
    model = timm.create_model("simple_cnn", drop_rate=0.5)
    inputs = torch.randn(2, 3, 32, 32)
    assert (model.train().forward_features(inputs) == 0).float().mean() > 0.4
    assert torch.equal(model.eval()(inputs), model(inputs))
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.5}
