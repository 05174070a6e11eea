"""Target layers: those that can be explained, the default one, and the messages about others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.exports.small_networks import make
from tlcli.contract.errors import ExportError
from tlcli.training.models.feature_layout import FeatureLayout
from tlcli.training.models.network import Network
from tlcli.training.models.target_layers import FEATURES_CALL, list_layers, resolve_layers, tapped


def executed(network: Network) -> list[tuple[str, tuple[int, ...]]]:
    """Return the backbone's modules with their output shapes in the order in which they finish; one that runs twice is listed twice."""
    size, calls = network.config.preprocessing, list[tuple[str, tuple[int, ...]]]()

    def note(name: str) -> object:
        return lambda _module, _inputs, output: calls.append((name, tuple(output.shape) if isinstance(output, Tensor) else ()))

    handles = [module.register_forward_hook(note(name)) for name, module in network.backbone.named_modules() if name]  # type: ignore[arg-type]
    with torch.no_grad():
        network.features(torch.zeros(1, 3, size.height, size.width))
    for handle in handles:
        handle.remove()
    return calls


@pytest.mark.parametrize("backbone", ["test_resnet", "resnet18", "mobilenetv2_100", "vgg11", "densenet121"])
def test_layers_are_listed_as_they_are_executed(backbone: str) -> None:
    network = make(backbone)
    calls = executed(network)
    once = [name for name, _ in calls if [other for other, _ in calls].count(name) == 1]
    spatial = {name: shape for name, shape in calls if name in once and len(shape) == 4 and min(shape[2:]) > 1}
    listed = list_layers(network)
    names = [layer.name for layer in listed]
    last = names[-1]
    in_order = [name for name in spatial if name in names]
    assert [name for name in names if name != FEATURES_CALL] == in_order
    assert set(names) - {FEATURES_CALL} == spatial.keys(), "all that have an extent, and no others"
    assert len(set(names)) == len(names)
    for layer in listed:
        if layer.name != FEATURES_CALL:
            assert (1, layer.channels, layer.height, layer.width) == spatial[layer.name]
            assert layer.kind == type(network.backbone.get_submodule(layer.name)).__name__
    assert last == FEATURES_CALL or last == in_order[-1]


@pytest.mark.parametrize(
    ("backbone", "head", "expected"),
    [
        ("resnet18", "linear", "layer4"),
        ("test_resnet", "mlp:16", "layer4"),
        ("densenet121", "linear", "features"),
        ("vgg11", "linear", "features"),
        ("vgg11", "original", "features"),
        ("mobilenetv2_100", "linear", "bn2"),
        ("mobilenetv3_small_050", "linear", "blocks"),
        ("efficientnet_b0", "linear", "bn2"),
        ("convnext_atto", "linear", "norm_pre"),
    ],
)
def test_the_last_layer_is_what_the_head_takes(backbone: str, head: str, expected: str) -> None:
    network = make(backbone, head)
    (layer,) = resolve_layers(network, None)
    seen: list[Tensor] = []
    size = network.config.preprocessing

    def note(_: str, output: Tensor) -> Tensor:
        seen.append(output)
        return output

    with torch.no_grad(), tapped(network, [layer], note):
        features = network.features(torch.zeros(1, 3, size.height, size.width))
    if layer.name != FEATURES_CALL:
        assert seen[0] is features
    assert (1, layer.channels, layer.height, layer.width) == tuple(features.shape)
    assert layer.name == expected


@pytest.mark.parametrize(
    ("backbone", "size", "name", "extent"),
    [("resnet18", (32, 32), "layer3", (2, 2)), ("resnet18", (32, 96), "layer3", (2, 6)), ("vgg11", (32, 48), None, (2, 3))],
)
def test_where_the_features_are_a_single_position_the_last_layer_with_an_extent(
    backbone: str, size: tuple[int, int], name: str | None, extent: tuple[int, int]
) -> None:
    network = make(backbone, size=size)
    (layer,) = resolve_layers(network, None)
    assert (layer.height, layer.width) == extent
    if name is not None:
        assert layer.name == name
    assert layer.name == list_layers(network)[-1].name or layer in list_layers(network)
    assert all(one.height > 1 and one.width > 1 for one in list_layers(network))


def test_layers_of_channels_last_blocks_have_their_channels_in_the_last_dimension() -> None:
    """ConvNeXt's blocks compute on `[N, h, w, c]`, which looks like a map of h channels."""
    network = make("convnext_tiny")
    layers = {layer.name: layer for layer in list_layers(network)}
    shapes = dict(executed(network))
    for name in ("stages.0.blocks.0.norm", "stages.0.blocks.0.mlp", "stages.0.blocks.0.mlp.fc1", "stages.2.blocks.1.mlp.act"):
        assert layers[name].layout.kind == "channels_last"
        assert (1, layers[name].height, layers[name].width, layers[name].channels) == shapes[name]
    for name in ("stages.0", "stages.0.blocks.0", "stages.0.blocks.0.conv_dw"):
        assert layers[name].layout.kind == "channels_first"


@pytest.mark.parametrize(
    ("backbone", "expected", "layout"),
    [
        ("test_vit", "blocks.5.norm1", FeatureLayout("tokens", 10, 10, 1)),  # behind it, only the class token reaches the head
        ("test_vit2", "blocks", FeatureLayout("tokens", 10, 10, 1)),  # the head takes the mean of the tokens
        ("test_vit3", "norm", FeatureLayout("tokens", 10, 10, 1)),  # the head attends to the tokens
        ("test_mambaout", "stages", FeatureLayout("channels_last", 5, 5)),
    ],
)
def test_the_default_layer_of_tokens_influences_the_scores(backbone: str, expected: str, layout: FeatureLayout) -> None:
    (layer,) = resolve_layers(make(backbone, "original", size=(160, 160)), None)
    assert (layer.name, layer.layout) == (expected, layout)


def test_a_layer_whose_tokens_do_not_influence_the_scores_is_refused() -> None:
    network = make("test_vit", "original", size=(160, 160))
    expected = r"--cam-layer blocks\.5: in test_vit the scores do not depend on .*choose an earlier layer, such as blocks\.5\.norm1$"
    with pytest.raises(ExportError, match=expected):
        resolve_layers(network, ["blocks.5"])


def test_modules_that_run_more_than_once_are_left_out() -> None:
    network = make("test_resnet")
    names = {layer.name for layer in list_layers(network)}
    assert "layer3.0.act1" in names
    network.backbone.layer4[0].act1 = network.backbone.layer3[0].act1  # type: ignore[index,union-attr]
    assert "layer3.0.act1" not in {layer.name for layer in list_layers(network)}
    with pytest.raises(ExportError, match=r"layer3\.0\.act1: in test_resnet this layer has no output .*, once per image"):
        resolve_layers(network, ["layer3.0.act1"])


def test_named_layers_come_in_the_order_of_execution() -> None:
    network = make("test_resnet")
    assert [layer.name for layer in resolve_layers(network, ["layer4", "conv1.0", "layer2"])] == ["conv1.0", "layer2", "layer4"]
    (layer,) = resolve_layers(network, ["layer2"])
    assert (layer.name, layer.kind, layer.height, layer.width, layer.is_features) == ("layer2", "Sequential", 8, 12, False)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["layer5"],
            r"--cam-layer layer5: in test_resnet this layer does not exist: choose from the \d+ of --list-cam-layers; similar names: layer",
        ),
        (
            ["global_pool"],
            r"--cam-layer global_pool: in test_resnet this layer has no output with a map `\[N, c, h, w\]`, once per image",
        ),
        (["fc"], r"--cam-layer fc: in test_resnet this layer has no output"),
        (["zzzzzzzz"], r"--cam-layer zzzzzzzz: in test_resnet this layer does not exist: choose from the \d+ of --list-cam-layers$"),
        (["layer2", "layer4", "layer2"], r"--cam-layer names a layer twice \(layer2, layer4, layer2\): name each layer once"),
        ([""], r"--cam-layer : in test_resnet this layer"),
    ],
)
def test_what_cannot_be_explained_is_told_in_a_line(names: list[str], message: str) -> None:
    with pytest.raises(ExportError, match=message) as refused:
        resolve_layers(make("test_resnet"), names)
    assert "\n" not in str(refused.value)


def test_a_network_without_any_extent(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make("test_resnet", size=(32, 32))
    monkeypatch.setattr(network, "backbone", Flat())
    assert list_layers(network) == []
    with pytest.raises(ExportError, match=r"test_resnet has no layer with a spatial extent at an input of 32x32, .*--cam none"):
        resolve_layers(network, None)


class Flat(nn.Module):
    """Backbone whose only layer pools the images to one position."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward_features(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.pool(inputs)
        return result


def test_a_tap_sees_and_replaces_outputs_and_is_gone_afterwards() -> None:
    network, seen = make("test_resnet"), list[str]()
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        before = network(images)

        def tap(name: str, output: Tensor) -> Tensor:
            seen.append(name)
            return output * 0

        with tapped(network, resolve_layers(network, ["layer4", "layer2"]), tap):
            zeros = network(images)
        assert seen == ["layer2", "layer4"]
        torch.testing.assert_close(zeros, network.last_layer.bias.expand(2, -1))
        torch.testing.assert_close(network(images), before, rtol=0, atol=0)
