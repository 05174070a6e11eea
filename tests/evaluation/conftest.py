from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.evaluation import corner_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model in a repository."""
    folder = tmp_path_factory.mktemp("models") / "quarter"
    corner_model.save(folder / "1" / "model.onnx")
    return folder
