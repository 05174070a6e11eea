"""Tests of VGG16 and ResNet-18 in both modes, on photographs and on CIFAR-10's small images, from random weights and from checkpoints."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision

from tlcli.exports import export_run
from tlcli.training import FinetuneConfig, finetune, load_run

COMBINATIONS = [
    ("resnet18", "none", "feature-extraction", "cats-vs-dogs"),
    ("resnet18", "none", "full", "cifar10"),
    ("resnet18", "torchvision", "feature-extraction", "cifar10"),
    ("resnet18", "torchvision", "full", "cats-vs-dogs"),
    ("resnet18", "timm", "feature-extraction", "cats-vs-dogs"),
    ("resnet18", "timm", "full", "cifar10"),
    ("vgg16", "none", "feature-extraction", "cifar10"),
    ("vgg16", "none", "full", "cats-vs-dogs"),
    ("vgg16", "torchvision", "feature-extraction", "cats-vs-dogs"),
    ("vgg16", "torchvision", "full", "cifar10"),
    ("vgg16", "timm", "feature-extraction", "cifar10"),
    ("vgg16", "timm", "full", "cats-vs-dogs"),
]
"""Backbone, weights, mode and data set: every backbone with its weights meets both modes and both data sets, every mode both data sets."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Return a function from a backbone and a layout to a checkpoint of random weights, as its makers save them."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def path_of(backbone: str, layout: str) -> Path:
        path = folder / f"{backbone}-{layout}.pth"
        if not path.exists():
            torch.manual_seed(0)
            model = getattr(torchvision.models, backbone)() if layout == "torchvision" else timm.create_model(backbone)
            torch.save(model.state_dict(), path)
        return path

    return path_of


@pytest.mark.parametrize(("backbone", "weights", "mode", "dataset"), COMBINATIONS)
def test_it_trains_and_exports(
    backbone: str,
    weights: str,
    mode: str,
    dataset: str,
    checkpoints: Callable[[str, str], Path],
    unpacked: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    config = FinetuneConfig(
        backbone=backbone,
        weights=weights if weights == "none" else str(checkpoints(backbone, weights)),
        mode=mode,  # type: ignore[arg-type]
        dataset=str(unpacked(dataset)),
        limit=4,
        image_size=64,
        epochs=2,
        batch_size=8,
        workers=0,
        output=tmp_path / "run",
    )
    result = finetune(config)
    stages = [row["stage"] for row in csv.DictReader((result.path / "metrics.csv").open())]
    expected = {"feature-extraction": ["head", "head"], "full": ["full", "full"] if weights == "none" else ["head", "full"]}
    assert stages == expected[mode]
    run = load_run(result.path)
    assert run.results.val.count == len(run.dataset().val)
    methods = ("gradcam", "layercam", "ablationcam")  # by gradients and by a loop; the values of all methods: tests/exports
    exported = export_run(run, name="model", repository=tmp_path / "models", methods=methods, check_images=4)
    assert exported.parity.top1_agreement == 1
    assert exported.parity.logits < 1e-3
    assert max(exported.parity.maps.values()) < 1e-4
