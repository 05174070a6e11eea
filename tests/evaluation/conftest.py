from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation import toy


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model in a repository."""
    folder = tmp_path_factory.mktemp("models") / "quarter"
    toy.save(folder / "1" / "model.onnx")
    return folder
