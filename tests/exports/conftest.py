"""Fixtures: exported files that several test modules share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers.exports.small_networks import Case, Exports, write_case
from tlcli.exports import published_network
from tlcli.training.models.network import Network, NetworkConfig
from tlcli.training.models.pretrained_preprocessing import resolve_preprocessing
from tlcli.training.models.weights import load_backbone
from tlcli.training.settings.config import FinetuneConfig


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Return files by network, layers and methods, each exported on first use."""
    return Exports(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session")
def trained(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    """Return `trained("cifar_resnet20", FILE, *layers)`: a network with weights of the shared data, and its file.

    MobileNetV2's head has random weights.
    """
    made: dict[tuple[str, ...], Case] = {}

    def case_of(backbone: str, weights: str, *layers: str) -> Case:
        key = (backbone, *layers)
        if key not in made:
            path = shared_data / "weights" / weights
            if backbone == "mobilenetv2_100":
                config = FinetuneConfig(
                    backbone=backbone, weights=str(path), model_kwargs={"pad_type": "same"}, mean=(0.5,) * 3, std=(0.5,) * 3
                )
                body, _ = load_backbone(config)
                torch.manual_seed(0)
                size = resolve_preprocessing(config, body)
                described = NetworkConfig(
                    backbone=backbone, model_kwargs=config.model_kwargs, head="linear", num_classes=10, preprocessing=size
                )
                network = Network(described, body).eval()
            else:
                network = published_network(FinetuneConfig(backbone=backbone, weights=str(path)))
            folder = tmp_path_factory.mktemp("trained")
            made[key] = write_case(network, folder / "model.onnx", layers=layers or None)
        return made[key]

    return case_of
