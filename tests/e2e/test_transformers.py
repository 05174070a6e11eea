"""Transformers walk the whole road: fine-tuned from a checkpoint in timm's layout, exported, and asked about an image with a map."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from tests.helpers.training.tiny_training import put_colours
from tlcli.__main__ import cli
from tlcli.contract.model.onnx_model import Model

ROADS = [
    ("vit_tiny_patch16_224", "full", 96, "blocks.11.norm1", 6),  # its position embeddings are resized to 6 x 6 patches
    ("swin_tiny_patch4_window7_224", "feature-extraction", 224, "norm", 7),
]


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "mode", "size", "layer", "positions"), ROADS)
def test_it_is_fine_tuned_exported_and_asked(backbone: str, mode: str, size: int, layer: str, positions: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(timm.create_model(backbone).state_dict(), tmp_path / "weights.safetensors")
    colours = put_colours(tmp_path / "colours", train=6, val=3, test=3)
    run(
        "finetune", "--backbone", backbone, "--weights", str(tmp_path / "weights.safetensors"), "--dataset", str(colours), "--mode", mode,
        "--image-size", str(size), "--epochs", "2", "--device", "cpu", "--workers", "0", "--output", str(tmp_path / "run"), "--no-export",
    )  # fmt: skip
    run("export", str(tmp_path / "run"), "--cam", "gradcam", "--check-images", "4", "--name", "model", "--output", str(tmp_path / "models"))
    model = Model.open(tmp_path / "models" / "model" / "1" / "model.onnx", device="cpu")
    assert [(one.name, one.height, one.width) for one in model.description.layers] == [(layer, positions, positions)]
    assert model.description.provenance.parity is not None
    assert model.description.provenance.parity.maps["gradcam"] < 1e-4
    image = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)).save(image)
    maps = tmp_path / "maps"
    answered = run("predict", str(tmp_path / "models" / "model"), str(image), "--cam", "gradcam", "--output", str(maps), "--json")
    (row,) = json.loads(answered)
    assert row["label"] in ("red", "green", "blue")
    assert [*maps.rglob("*.png")]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout
