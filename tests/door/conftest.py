"""A repository with one model, images beside it, and a data set that trains in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.service.sample_images import BLUE, RED, encode, scene
from tests.helpers.service.toy_model import ToyModel


@pytest.fixture(scope="package")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that holds `toy`, which sees colours."""
    folder = tmp_path_factory.mktemp("models")
    ToyModel.make(seed=5, channels=24).save(folder / "toy/1/model.onnx", "toy")
    return folder


@pytest.fixture(scope="package")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two photographs of different sizes."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "a.png").write_bytes(encode(scene(RED, (30, 20, 230, 170))))
    (folder / "b.jpg").write_bytes(encode(scene(BLUE, (200, 100, 1300, 900), size=(1600, 1000)), "JPEG", quality=90))
    return folder
