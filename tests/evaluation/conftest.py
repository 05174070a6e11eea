from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.evaluation import corner_model
from tests.helpers.forked_commands import Tlcli, forked_commands


@pytest.fixture(scope="package")
def tlcli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tlcli]:
    with forked_commands(tmp_path_factory.mktemp("commands")) as commands:
        yield commands.completed


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model in a repository."""
    folder = tmp_path_factory.mktemp("models") / "quarter"
    corner_model.save(folder / "1" / "model.onnx")
    return folder
