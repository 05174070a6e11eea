"""CIFAR ResNets: layer sizes of the paper, published checkpoints, and their accuracy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional

from tlcli.contract.errors import WeightsError
from tlcli.contract.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from tlcli.exports import export_backbone
from tlcli.exports.published_backbone import published_network
from tlcli.training.data.load import load_dataset
from tlcli.training.engine.all_layers import classify_images
from tlcli.training.models.pretrained_preprocessing import resolve_preprocessing
from tlcli.training.models.weights import load_backbone
from tlcli.training.models.zoo.cifar_resnet import DEPTHS, OptionA
from tlcli.training.settings.config import FinetuneConfig
from tlcli.training.settings.plan import resolve_plan

CHECKPOINTS = {"cifar_resnet20": "cifar10_resnet20-12fca82f.th", "cifar_resnet56": "cifar10_resnet56-4bfd9763.th"}
MILLIONS = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85}
"""Millions of parameters, arXiv:1512.03385, table 6."""


@pytest.fixture
def checkpoint(shared_data: Path) -> Callable[[str], FinetuneConfig]:
    """Return a function from a network's name to the settings for its checkpoint."""
    return lambda name: FinetuneConfig(
        backbone=name, weights=str(shared_data / "weights" / CHECKPOINTS[name]), head="original", device="cpu"
    )


@pytest.mark.parametrize("depth", DEPTHS)
def test_layer_sizes_are_the_papers(depth: int) -> None:
    model: Any = timm.create_model(f"cifar_resnet{depth}").eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert round(parameters / 1e6, 2) == MILLIONS[depth]
    weighted = [module for module in model.modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len(weighted) == depth  # no shortcut has weights
    sizes: dict[str, list[int]] = {}
    for name in ("conv1", "layer1", "layer2", "layer3", "linear"):
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: sizes.update({name: list(output.shape[1:])}))
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    assert sizes == {"conv1": [16, 32, 32], "layer1": [16, 32, 32], "layer2": [32, 16, 16], "layer3": [64, 8, 8], "linear": [10]}


def test_option_a_keeps_every_second_pixel_and_adds_channels_of_zeros() -> None:
    inputs = torch.arange(2 * 4 * 5 * 6.0).reshape(2, 4, 5, 6) + 1
    outputs = OptionA(4, 2)(inputs)
    assert outputs.shape == (2, 8, 3, 3)
    for y in range(3):
        for x in range(3):
            assert torch.equal(outputs[:, 2:6, y, x], inputs[:, :, 2 * y, 2 * x])
    assert not outputs[:, [0, 1, 6, 7]].any()


def by_hand(state: dict[str, Tensor], x: Tensor, blocks: int) -> Tensor:
    """Compute the network as described in the paper, from the tensors of the file."""

    def normalised(x: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, mean, variance, weight, bias)

    x = functional.relu(normalised(functional.conv2d(x, state["conv1.weight"], padding=1), "bn1"))
    for stage in (1, 2, 3):
        for block in range(blocks):
            path, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = functional.conv2d(x, state[f"{path}.conv1.weight"], stride=stride, padding=1)
            y = functional.conv2d(functional.relu(normalised(y, f"{path}.bn1")), state[f"{path}.conv2.weight"], padding=1)
            y = normalised(y, f"{path}.bn2")
            if stride == 2:
                zeros = torch.zeros(len(x), x.shape[1] // 2, *y.shape[2:])
                x = torch.cat([zeros, functional.avg_pool2d(x, 1, 2), zeros], 1)
            x = functional.relu(x + y)
    return functional.linear(x.mean((2, 3)), state["linear.weight"], state["linear.bias"])


@torch.no_grad()
@pytest.mark.parametrize(("name", "blocks"), [("cifar_resnet20", 3), ("cifar_resnet56", 9)])
def test_a_checkpoint_loads_unchanged_and_gives_the_logits_computed_by_hand(
    name: str, blocks: int, checkpoint: Callable[[str], FinetuneConfig]
) -> None:
    config = checkpoint(name)
    content = torch.load(config.weights, map_location="cpu", weights_only=True)["state_dict"]
    state = {key.removeprefix("module."): value for key, value in content.items()}
    found: Any = load_backbone(config)[0].eval()
    assert found.num_classes == 10
    inputs = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = by_hand(state, inputs, blocks)
    assert expected.std() > 1
    torch.testing.assert_close(found(inputs), expected, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_of_another_depth_is_rejected(checkpoint: Callable[[str], FinetuneConfig]) -> None:
    config = checkpoint("cifar_resnet20").model_copy(update={"backbone": "cifar_resnet32"})
    with pytest.raises(
        WeightsError, match=r"does not fit cifar_resnet32: 60 tensors missing \(layer1.3.conv1.weight; .*: use the backbone"
    ):
        load_backbone(config)


def test_preprocessing_is_the_checkpoints(checkpoint: Callable[[str], FinetuneConfig]) -> None:
    config = checkpoint("cifar_resnet20")
    preprocessing = resolve_preprocessing(config, load_backbone(config)[0])
    assert (preprocessing.height, preprocessing.width, preprocessing.crop_pct) == (32, 32, 1.0)
    assert (preprocessing.mean, preprocessing.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_a_checkpoint_classifies_four_of_five_jpegs_correctly(
    checkpoint: Callable[[str], FinetuneConfig], unpacked: Callable[[str], Path]
) -> None:
    """The accuracy is 91.7 % on the original images, and lower on these, which were saved as JPEG."""
    config = checkpoint("cifar_resnet20").model_copy(update={"dataset": str(unpacked("cifar10")), "limit": 200, "workers": 0})
    test = load_dataset(config).test
    assert test is not None
    assert len(test) == 2000
    logits = classify_images(published_network(config), test, resolve_plan(config))
    top1 = float((logits.argmax(1).numpy() == test.labels).mean())
    assert 0.79 < top1 < 0.84


@pytest.mark.slow
def test_the_original_head_is_exported_with_maps_of_any_layer(checkpoint: Callable[[str], FinetuneConfig], tmp_path: Path) -> None:
    """The export compares logits and maps of the file with PyTorch's. `layer1` is explained through both shortcuts."""
    exported = export_backbone(
        checkpoint("cifar_resnet20"), name="model", repository=tmp_path, layers=["layer1", "layer3"], methods=["gradcam"], check_images=2
    )
    assert exported.parity.top1_agreement == 1
    assert {"gradcam@layer1", "gradcam@layer3"} <= exported.parity.maps.keys()
