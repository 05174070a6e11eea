"""Split of a backbone into features, embedding and classifier, and the gradient of the features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from tlcli.contract.errors import SettingsError
from tlcli.contract.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from tlcli.training.models.network import Network, NetworkConfig, build, create_backbone
from tlcli.training.models.pretrained_preprocessing import resolve_preprocessing
from tlcli.training.models.target_layers import resolve_layers, run_tapped
from tlcli.training.models.weights import load_backbone
from tlcli.training.reports.gradcam import gradcam, layer_gradients
from tlcli.training.settings.config import FinetuneConfig
from tlcli.training.settings.model_arguments import Argument


def network(backbone: str, head: str, size: int = 32, classes: int = 3) -> Network:
    torch.manual_seed(0)
    return build(NetworkConfig(backbone=backbone, head=head, num_classes=classes, preprocessing=Preprocessing(height=size, width=size)))


@pytest.mark.parametrize("head", ["linear", "mlp:16", "original"])
@pytest.mark.parametrize("backbone", ["test_resnet", "resnet10t", "mobilenetv2_035", "mobilenetv3_small_050", "dla46_c", "test_convnext"])
def test_the_three_steps_equal_the_forward_pass(backbone: str, head: str) -> None:
    built = network(backbone, head)
    inputs = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    features = built.features(inputs)
    embedding = built.embed(features)
    assert features.ndim == 4
    assert embedding.ndim == 2
    torch.testing.assert_close(built.classify(embedding), built(inputs))
    assert built(inputs).shape == (2, 3)
    if head == "original":  # timm's own forward pass is the reference
        torch.testing.assert_close(built(inputs), built.backbone(inputs))
    if head == "linear":  # the spatial mean, whatever layers the network's own head has
        assert embedding.shape[1] == features.shape[1]


@pytest.mark.parametrize("backbone", ["swiftformer_xs", "efficientformerv2_s0", "repvit_m0_9"])
def test_a_linear_head_replaces_two_classifiers(backbone: str) -> None:
    """Follows the advice in the error message about their own head."""
    with pytest.raises(
        SettingsError,
        match=rf"{backbone}: its own head (has 2 classifiers|does not end with one linear layer), .*fine-tune with --head linear",
    ):
        network(backbone, "original", 224, classes=3)
    built = network(backbone, "linear", 224, classes=3)
    inputs = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    features = built.backbone.forward_features(inputs)  # type: ignore[operator]
    torch.testing.assert_close(built(inputs), features.mean((-2, -1)) @ built.last_layer.weight.T + built.last_layer.bias)


def test_a_linear_head_drops_vggs_hidden_layers() -> None:
    kept, dropped = network("vgg11", "original"), network("vgg11", "linear")
    parameters = [sum(parameter.numel() for parameter in each.parameters()) for each in (kept, dropped)]
    assert parameters[0] - parameters[1] > 100e6  # fc6 and fc7
    assert dropped.classifier.weight.shape == (3, 512)  # type: ignore[union-attr]


def test_normalisation_is_that_of_the_preprocessing() -> None:
    built = network("test_resnet", "linear")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    expected = (images / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    normalised = built.normalise(torch.from_numpy(images)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(normalised, expected, atol=1e-5)
    torch.testing.assert_close(built.predict(images), built(built.normalise(torch.from_numpy(images))))


@pytest.mark.parametrize(
    ("backbone", "size", "message"),
    [
        ("vgg11", 8, "vgg11 does not accept images of 8x8 pixels .*made for 224x224; choose another --image-size"),
        ("maxvit_nano_rw_256", 64, "does not accept images of 64x64 pixels"),
        ("pit_ti_224", 224, "no spatial features .*choose another backbone"),
        ("resnet999", 32, "unknown backbone 'resnet999': run `tlcli backbones` for a list; similar names: .*resnet"),
        ("resnet18.nope", 32, "resnet18 has no weights with that tag; available: .*resnet18.a1_in1k"),
    ],
)
def test_an_unusable_backbone_is_reported_with_the_reason(backbone: str, size: int, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        network(backbone, "linear", size)
    assert "\n" not in str(error.value)


def test_invalid_model_arguments_are_named() -> None:
    with pytest.raises(SettingsError, match=r"test_resnet does not accept these model arguments \(nonsense\)"):
        create_backbone("test_resnet", {"nonsense": 1})
    with pytest.raises(SettingsError, match="--model-kwargs checkpoint_path: cannot be set here"):
        create_backbone("test_resnet", {"checkpoint_path": "x"})


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("test_vit", {"img_size": (64,)}),
        ("test_vit", {"img_size": (64, 64, 3)}),
        ("test_vit", {"img_size": "64"}),
        ("test_vit", {"patch_size": 0}),
        ("test_resnet", {"output_stride": 5}),
        ("test_convnext", {"dims": (8, 8)}),
    ],
)
def test_arguments_that_timm_rejects_in_any_way_are_one_line(name: str, arguments: dict[str, Argument]) -> None:
    with pytest.raises(SettingsError, match=rf"{name} does not accept these model arguments \({next(iter(arguments))}\): ") as error:
        create_backbone(name, arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("arguments", [{"patch_size": 0}, {"img_size": (64,)}, {"img_size": (64, 64, 3)}])
def test_with_weights_they_are_the_arguments_fault(arguments: dict[str, Argument], tmp_path: Path) -> None:
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "weights.safetensors")
    config = FinetuneConfig(backbone="test_vit", weights=str(tmp_path / "weights.safetensors"), model_kwargs=arguments)
    with pytest.raises(SettingsError, match="test_vit does not accept these model arguments"):
        load_backbone(config)


def test_the_image_size_may_be_two_numbers() -> None:
    config = FinetuneConfig(backbone="test_vit", model_kwargs={"img_size": (64, 96)})
    shape = resolve_preprocessing(config, create_backbone("test_vit", config.model_kwargs))
    assert (shape.height, shape.width) == (64, 96)


def test_settings_override_the_backbones_preprocessing() -> None:
    backbone = timm.create_model("test_resnet")
    own = resolve_preprocessing(FinetuneConfig(backbone="test_resnet"), backbone)
    assert own == Preprocessing(height=160, width=160, crop_pct=0.95, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    config = FinetuneConfig(backbone="test_resnet", image_size=96, interpolation="bicubic", std=(1.0, 1.0, 1.0))
    changed = resolve_preprocessing(config, backbone)
    assert changed == own.model_copy(update={"height": 96, "width": 96, "interpolation": "bicubic", "std": (1.0, 1.0, 1.0)})


def test_the_error_for_a_fixed_image_size_names_the_argument_that_changes_it() -> None:
    backbone = timm.create_model("maxvit_nano_rw_256")
    with pytest.raises(SettingsError, match=r"--image-size 224: .*256x256 pixels and accepts no other size; .*--model-kwargs img_size=224"):
        resolve_preprocessing(FinetuneConfig(backbone="maxvit_nano_rw_256", image_size=224), backbone)
    config = FinetuneConfig(backbone="maxvit_nano_rw_256", image_size=224, model_kwargs={"img_size": 224})
    assert resolve_preprocessing(config, backbone).height == 224


@pytest.mark.parametrize(("backbone", "head"), [("test_resnet", "linear"), ("test_resnet", "mlp:8"), ("test_vit", "original")])
def test_the_gradients_of_a_layer_are_the_jacobian_of_what_follows_it(backbone: str, head: str) -> None:
    """Compares with a Jacobian-vector product by forward-mode differentiation, in float64."""
    built = network(backbone, head, 160 if backbone == "test_vit" else 64).double().requires_grad_(False)
    for module in built.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]  # the fused operator has no forward-mode derivative
    (layer,) = resolve_layers(built, None)
    size = built.config.preprocessing
    images = torch.randint(0, 256, (2, size.height, size.width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([[2, 0], [1, 1]])
    logits, activations, gradients = layer_gradients(built, layer, images, classes)
    torch.testing.assert_close(logits, built(built.normalise(images)))
    for image in range(2):
        own, inputs = activations[image : image + 1], built.normalise(images[image : image + 1])
        direction = torch.randn(own.shape, dtype=own.dtype, generator=torch.Generator().manual_seed(image))
        _, change = torch.func.jvp(lambda a, inputs=inputs: run_tapped(built, inputs, [layer], lambda *_: a), (own,), (direction,))
        expected = change[0, classes[image]]
        torch.testing.assert_close((gradients[image] * direction).flatten(1).sum(1), expected)


def test_gradcam_is_the_papers_formula() -> None:
    rng = np.random.default_rng(0)
    activations, gradients = rng.normal(size=(2, 5, 3, 4)), rng.normal(size=(2, 2, 5, 3, 4))
    maps = gradcam(torch.from_numpy(activations), torch.from_numpy(gradients)).numpy()
    for n in range(2):
        for k in range(2):
            expected = sum(gradients[n, k, c].mean() * activations[n, c] for c in range(5))
            np.testing.assert_allclose(maps[n, k], np.maximum(expected, 0), atol=1e-12)


def test_no_class_gives_no_gradient() -> None:
    built = network("test_resnet", "linear", 64)
    (layer,) = resolve_layers(built, None)
    images = torch.zeros(3, 64, 64, 3, dtype=torch.uint8)
    assert layer_gradients(built, layer, images, torch.zeros(3, 0, dtype=torch.int64))[2].shape == (3, 0, 96, 2, 2)
