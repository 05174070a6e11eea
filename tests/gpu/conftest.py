"""Tests that need a CUDA device; without one they are skipped with a reason."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers.exports.small_networks import Exports
from tlcli.contract.errors import DeviceError
from tlcli.contract.model.onnx_model import resolve_device


@pytest.fixture(scope="session", autouse=True)
def _cuda() -> None:
    try:
        resolve_device("cuda")
    except DeviceError as error:
        pytest.skip(str(error))
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device")


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("exports"))


@pytest.fixture(scope="session")
def models(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, case in {"resnet": exports("resnet18"), "vgg": exports("vgg11")}.items():
        (folder / name / "1").mkdir(parents=True)
        shutil.copy(case.model.path, folder / name / "1" / "model.onnx")
    return folder
