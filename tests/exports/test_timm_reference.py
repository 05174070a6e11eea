"""Published networks, against timm's own model that timm loads from the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from tlcli.contract.errors import ParityError, SettingsError
from tlcli.contract.model.onnx_model import Model
from tlcli.exports import export_backbone, published_network
from tlcli.exports.timm_reference import require_as_timm
from tlcli.training.models.network import CutError, Network, NetworkConfig, WholeNetwork
from tlcli.training.models.weights import load_backbone
from tlcli.training.settings.config import FinetuneConfig

CLASSES = 1000
HEADS_WITH_BATCH_NORM = ("shvit_s1", "efficientvit_m0")


def save(name: str, path: Path) -> nn.Module:
    """Save random weights, no batch norm at its defaults, and return timm's own model, which timm loads from the file."""
    torch.manual_seed(0)
    model = timm.create_model(name)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.weight.data.uniform_(0.3, 0.9)
            module.bias.data.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    safetensors.torch.save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path), "custom_load": False}).eval()


def config(name: str, path: Path, **settings: Any) -> FinetuneConfig:
    return FinetuneConfig(backbone=name, weights=str(path), **settings)


def images(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, 256, (2, size, size, 3), dtype=np.uint8)


def assert_same(logits: Any, reference: nn.Module, inputs: torch.Tensor) -> None:
    with torch.no_grad():
        expected = reference(inputs).numpy()
    np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", HEADS_WITH_BATCH_NORM)
def test_a_batch_norm_in_the_head_keeps_its_weights(name: str, tmp_path: Path) -> None:
    reference = save(name, tmp_path / "w.safetensors")
    network = published_network(config(name, tmp_path / "w.safetensors"))
    shown = images(network.config.preprocessing.height)
    assert_same(network.predict(shown), reference, network.normalise(torch.from_numpy(shown)))


@pytest.mark.parametrize("name", HEADS_WITH_BATCH_NORM)
def test_fine_tuning_starts_with_the_batch_norm_of_the_published_head(name: str, tmp_path: Path) -> None:
    """Logits of the new classifier, computed by hand from what timm's head gives its last layer."""
    reference = save(name, tmp_path / "w.safetensors")
    settings = config(name, tmp_path / "w.safetensors", head="original")
    backbone, _ = load_backbone(settings)
    size = published_network(settings).config.preprocessing
    network = Network(NetworkConfig(backbone=name, head="original", num_classes=3, preprocessing=size), backbone).eval()
    given: list[torch.Tensor] = []
    linear = [module for module in reference.modules() if isinstance(module, nn.Linear)][-1]
    linear.register_forward_hook(lambda _, came, __: given.append(came[0]))
    inputs = network.normalise(torch.from_numpy(images(size.height)))
    with torch.no_grad():
        reference(inputs)
        expected = given[0] @ network.last_layer.weight.T + network.last_layer.bias
        assert_same(network(inputs), nn.Identity(), expected)


@pytest.mark.parametrize("name", ["crossvit_tiny_240", "levit_conv_128s", "efficientformerv2_s0", "deit_tiny_distilled_patch16_224"])
def test_networks_that_cannot_be_split_run_as_timm_runs_them(name: str, tmp_path: Path) -> None:
    """Several scales, and two heads, whose logits are averaged."""
    reference = save(name, tmp_path / "w.safetensors")
    network = published_network(config(name, tmp_path / "w.safetensors"))
    assert isinstance(network, WholeNetwork)
    shown = images(network.config.preprocessing.height)
    assert_same(network.predict(shown), reference, network.normalise(torch.from_numpy(shown)))
    with pytest.raises(CutError, match=rf"{name}.* export the published model: `tlcli export --backbone {name}`") as refused:
        Network(network.config, network.backbone, keep_classifier=True)
    assert "\n" not in str(refused.value)


def test_a_transformer_is_exported_with_and_without_maps(tmp_path: Path) -> None:
    reference = save("test_vit", tmp_path / "w.safetensors")
    settings = config("test_vit", tmp_path / "w.safetensors")
    shown = images(160)
    inputs = published_network(settings).normalise(torch.from_numpy(shown))
    for methods in ((), ("gradcam",)):
        exported = export_backbone(settings, name="vit", repository=tmp_path, methods=methods, temperature=2.0, check_images=2)
        assert exported.description.graph_maps == methods
        assert_same(2 * Model.open(exported.path, device="cpu").run(shown).logits, reference, inputs)


@pytest.mark.parametrize("name", ["crossvit_tiny_240", "efficientvim_m1", "pit_ti_224", "coat_tiny"])
@pytest.mark.parametrize("head", ["linear", "original"])
def test_fine_tuning_of_what_has_no_spatial_features_is_refused_in_a_line(name: str, head: str) -> None:
    backbone = timm.create_model(name)
    size = published_network(FinetuneConfig(backbone=name, weights="none")).config.preprocessing
    with pytest.raises(SettingsError, match=rf"{name} has no spatial features .*choose another backbone") as refused:
        Network(NetworkConfig(backbone=name, head=head, num_classes=3, preprocessing=size), backbone)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["test_vit", "test_mambaout", "levit_128s", "test_vit_relpos"])
@pytest.mark.parametrize("head", ["linear", "mlp:8"])
def test_a_new_head_is_put_on_tokens_and_on_channels_last_features(name: str, head: str) -> None:
    backbone = timm.create_model(name)
    size = published_network(FinetuneConfig(backbone=name, weights="none")).config.preprocessing
    network = Network(NetworkConfig(backbone=name, head=head, num_classes=3, preprocessing=size), backbone).eval()
    inputs = network.normalise(torch.from_numpy(images(size.height)))
    embedding = network.embed(network.features(inputs))
    assert embedding.ndim == 2
    assert network.classify(embedding).shape == (len(inputs), 3)


def test_a_network_that_does_not_answer_as_timm_does_is_refused(tmp_path: Path) -> None:
    """A head that is cut wrongly: the last layer gets the pooled features without the batch norm."""
    save("shvit_s1", tmp_path / "w.safetensors")
    network = published_network(config("shvit_s1", tmp_path / "w.safetensors"))
    require_as_timm(network)
    assert network._own_head is not None
    network._own_head = type(network._own_head)(network._own_head.classifier)
    with pytest.raises(
        ParityError, match=r"the network built of shvit_s1 differs from timm's own model .*logits differ by .* of the largest"
    ) as refused:
        require_as_timm(network)
    assert "\n" not in str(refused.value)


def test_attention_in_five_dimensions_has_an_onnx_form(tmp_path: Path) -> None:
    """Hiera's attention, which PyTorch's exporter rejects as a single operator."""
    reference = save("hiera_tiny_224", tmp_path / "w.safetensors")
    settings = config("hiera_tiny_224", tmp_path / "w.safetensors")
    exported = export_backbone(settings, name="hiera", repository=tmp_path, methods=(), check_images=1)
    shown = images(224)
    inputs = published_network(settings).normalise(torch.from_numpy(shown))
    assert_same(Model.open(exported.path, device="cpu").run(shown).logits, reference, inputs)
