"""Common tests of this project's own networks: timm's registry, every head, export with maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tests.helpers.training import tiny_training
from tlcli.contract.errors import SettingsError, WeightsError
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.exports import export_backbone
from tlcli.training.engine.optimizer import layered_optimizer
from tlcli.training.fine_tuning import finetune
from tlcli.training.models.list_backbones import Backbone, list_backbones
from tlcli.training.models.network import Network, NetworkConfig, build, create_backbone
from tlcli.training.models.weights import fingerprint, load_backbone
from tlcli.training.settings.config import FinetuneConfig

FAMILIES = {
    "simple_cnn": "textbook",
    "lenet5": "textbook",
    "zfnet": "textbook",
    **{f"cifar_resnet{depth}": "cifar_resnet" for depth in (20, 32, 44, 56)},
}
WITH_HIDDEN_LAYERS = ("lenet5", "zfnet")
SIZES = {"zfnet": 64}
"""Input sizes; 32x32 for the other networks."""
LAYERS = {"simple_cnn": 4, "lenet5": 3, "zfnet": 6, "cifar_resnet20": 11, "cifar_resnet32": 17, "cifar_resnet44": 23, "cifar_resnet56": 29}
"""Numbers of layers with their own learning rate under a linear head: the stem, convolutions or residual blocks, the head."""


def network(name: str, head: str) -> Network:
    torch.manual_seed(0)
    size = SIZES.get(name, 32)
    return build(NetworkConfig(backbone=name, head=head, num_classes=3, preprocessing=Preprocessing(height=size, width=size)))


@pytest.mark.parametrize("name", FAMILIES)
def test_networks_are_listed_without_official_weights(name: str) -> None:
    assert [backbone for backbone in list_backbones(name) if backbone.name == name] == [Backbone(name, FAMILIES[name], ())]
    with pytest.raises(
        WeightsError, match=rf"^{name} has no official weights: use --weights FILE, or train from random weights with --weights none$"
    ):
        load_backbone(FinetuneConfig(backbone=name, weights="pretrained"))
    with pytest.raises(SettingsError, match=rf"{name} does not accept these model arguments \(nonsense\)"):
        create_backbone(name, {"nonsense": 1})


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_networks_have_timms_interface(name: str) -> None:
    model: Any = timm.create_model(name, in_chans=1, num_classes=4).eval()
    _, height, width = model.default_cfg["input_size"]
    inputs = torch.randn(2, 1, height, width, generator=torch.Generator().manual_seed(0))
    features = model.forward_features(inputs)
    assert tuple(features.shape[1:]) == (model.num_features, *model.default_cfg["pool_size"])
    embedding = model.forward_head(features, pre_logits=True)
    assert embedding.shape == (2, model.head_hidden_size)
    assert torch.equal(model.get_classifier()(embedding), model(inputs))
    assert model.get_submodule(model.default_cfg["classifier"]) is model.get_classifier()
    assert model.get_submodule(model.default_cfg["first_conv"]).in_channels == 1
    model.reset_classifier(0)
    assert torch.equal(model(inputs), embedding)
    assert model.num_classes == 0
    assert timm.create_model(name, num_classes=0).num_classes == 0


@torch.no_grad()
@pytest.mark.parametrize("head", ["linear", "mlp:8", "original"])
@pytest.mark.parametrize("name", ["simple_cnn", "lenet5", "zfnet", "cifar_resnet20"])
def test_the_three_steps_equal_the_forward_pass(name: str, head: str) -> None:
    built = network(name, head)
    size = SIZES.get(name, 32)
    inputs = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    features = built.features(inputs)
    embedding = built.embed(features)
    torch.testing.assert_close(built.classify(embedding), built(inputs))
    assert built(inputs).shape == (2, 3)
    if head == "original":
        torch.testing.assert_close(built(inputs), built.backbone(inputs))
    elif head == "linear":
        torch.testing.assert_close(embedding, features.mean((2, 3)))
    if name in WITH_HIDDEN_LAYERS:
        assert any(key.startswith("backbone.classifier.") for key in built.state_dict()) == (head == "original")


@pytest.mark.parametrize("name", FAMILIES)
def test_rates_rise_layer_by_layer_from_the_stem(name: str) -> None:
    """Each of these networks defines its layers from the stem to the classifier, so its parameters are in that order."""
    for head, more in (("linear", 0), ("original", 2 if name in WITH_HIDDEN_LAYERS else 0)):
        built = network(name, head)
        rate_of = {
            id(parameter): group["lr"] for group in layered_optimizer(built, 1.0, 0.0, 0.9).param_groups for parameter in group["params"]
        }
        rates = [rate_of[id(parameter)] for parameter in built.parameters()]
        assert rates == sorted(rates)
        assert len(set(rates)) == LAYERS[name] + more
        assert rates[-1] == 1.0


@pytest.mark.parametrize("name", ["simple_cnn", "lenet5", "cifar_resnet20"])
def test_weights_load_with_or_without_a_classifier(name: str, tmp_path: Path) -> None:
    source = timm.create_model(name, num_classes=7)
    torch.save({"state_dict": {f"module.{key}": value for key, value in source.state_dict().items()}}, tmp_path / "found.pth")
    config = FinetuneConfig(backbone=name, weights=str(tmp_path / "found.pth"))
    found, print_of_it = load_backbone(config)
    assert found.num_classes == 7
    assert print_of_it == fingerprint(source.state_dict())
    classifier = ("linear.", "classifier.")
    body = {key: value for key, value in source.state_dict().items() if not key.startswith(classifier)}
    torch.save(body, tmp_path / "found.pth")
    found, print_of_it = load_backbone(config)
    assert found.num_classes == 0
    assert print_of_it == fingerprint(body)


@pytest.mark.parametrize(("name", "head"), [("simple_cnn", "linear"), ("lenet5", "original"), ("cifar_resnet20", "mlp:8")])
def test_a_run_is_loaded_again(name: str, head: str, tmp_path: Path) -> None:
    dataset = tiny_training.put_colours(tmp_path / "images", train=4, val=2, test=2)
    result = finetune(tiny_training.config(dataset, tmp_path / "run", backbone=name, head=head, mode="full", epochs=1))
    tiny_training.check_it_is_read_back(result)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simple_cnn", "lenet5", "zfnet"])
def test_the_original_head_is_exported(name: str, tmp_path: Path) -> None:
    """The export compares logits and maps of the file with PyTorch's."""
    config = FinetuneConfig(backbone=name, weights="none")
    exported = export_backbone(config, name="model", repository=tmp_path, check_images=2)
    exported.path.unlink()
    assert exported.parity.top1_agreement == 1
    assert "gradcam" in exported.parity.maps
    assert ("cam" in exported.parity.maps) == (name not in WITH_HIDDEN_LAYERS)  # CAM needs a head without hidden layers
