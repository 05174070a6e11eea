"""Every block of docs/python.md runs, as it is written there, in the folder of a reader."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.e2e.test_readme import fill_hub_cache
from tests.helpers.code_blocks import code_blocks
from tlcli.service import ServerSettings, in_background

BLOCKS = [code for language, code in code_blocks(REPOSITORY / "docs" / "python.md") if language == "python"]


@pytest.fixture(scope="module")
def home(unpacked: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs, a model `pets` of cats and dogs, and ResNet-18's weights where the hub's client keeps them."""
    import tlcli

    home = tmp_path_factory.mktemp("python")
    photographs = unpacked("cats-vs-dogs")
    for label in ("cat", "dog"):
        for number, image in enumerate(sorted((photographs / "train" / label).iterdir())[:8]):
            folder = home / "PATH/TO/FOLDER" / label
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, folder / f"{number}{image.suffix}")
    (home / "folder").mkdir()
    shutil.copy(home / "PATH/TO/FOLDER/cat/0.jpg", home / "cat.jpg")
    shutil.copy(home / "PATH/TO/FOLDER/dog/0.jpg", home / "folder")
    (home / "folder" / "broken.jpg").write_bytes(b"no image")
    fill_hub_cache(home / "hub", "resnet18")
    run = tlcli.finetune(
        home / "PATH/TO/FOLDER", "test_resnet", weights="none", image_size=64, epochs=1, workers=0, output=home / "runs/pets", quiet=True
    )
    tlcli.export(run, output=home / "models", quiet=True)
    return home


@pytest.fixture(scope="module")
def port(home: Path) -> Iterator[int]:
    with in_background(ServerSettings(models=home / "models", port=0)) as port:
        yield port


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 6


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_runs(number: int, home: Path, port: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "1"}
    code = BLOCKS[number].replace("localhost:8001", f"localhost:{port}")
    done = subprocess.run([sys.executable, "-c", code], cwd=home, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
