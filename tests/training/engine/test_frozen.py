"""Frozen layers stay bit-identical to the loaded weights, batch norm statistics included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.helpers.training.tiny_training import config, digest, put_colours
from tlcli.training import finetune, load_run
from tlcli.training.engine.all_layers import AllLayers
from tlcli.training.models.weights import load_backbone
from tlcli.training.settings.config import FinetuneConfig

pytestmark = pytest.mark.usefixtures("blank_figures")


class SecondStageError(Exception):
    """The stage that trains all layers is about to begin."""


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_colours(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, colours: Path) -> Path:
    """Checkpoint with batch norm statistics that a single batch in training mode would change."""
    draw = torch.Generator().manual_seed(0)
    state = load_backbone(config(colours))[0].state_dict()
    for name, tensor in state.items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=draw)
        elif name.endswith("running_mean"):
            tensor.normal_(std=0.1, generator=draw)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    safetensors.torch.save_file(state, path)
    return path


def loaded(settings: FinetuneConfig) -> dict[str, str]:
    return without_classifier(digest(load_backbone(settings)[0]))


def without_classifier(tensors: dict[str, str]) -> dict[str, str]:
    found = {name: value for name, value in tensors.items() if not name.startswith("fc.")}
    assert sum("running_" in name for name in found) > 10
    return found


@pytest.mark.parametrize("extra", [{"head": "linear"}, {"head": "mlp:8"}, {"augment": 2}], ids=["linear", "mlp", "augmented"])
def test_feature_extraction_leaves_the_backbone_as_it_was_loaded(
    colours: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any]
) -> None:
    monkeypatch.setenv("TLCLI_CACHE", str(tmp_path / "cache"))
    settings = config(colours, tmp_path / "run", weights=str(weights), epochs=4, lr=0.1, **extra)
    result = finetune(settings)
    kept = without_classifier(digest(load_run(result.path).network.backbone))
    assert kept == loaded(settings)


def test_the_head_stage_of_mode_full_leaves_the_backbone_as_it_was_loaded(
    colours: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLCLI_CACHE", str(tmp_path / "cache"))
    settings = config(colours, tmp_path / "run", mode="full", weights=str(weights), epochs=6, head_epochs=4, lr=0.1)
    seen: list[dict[str, str]] = []

    def second_stage(stage: AllLayers, *_: object) -> None:
        seen.append(digest(stage.network.backbone))
        raise SecondStageError

    monkeypatch.setattr(AllLayers, "train", second_stage)
    with pytest.raises(SecondStageError):
        finetune(settings)
    assert without_classifier(seen[0]) == loaded(settings)
    blank = digest(load_backbone(settings)[0])
    assert seen[0]["fc.weight"] != blank["fc.weight"]  # the head has learned
