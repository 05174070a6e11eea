"""Export of a backbone imports nothing that reads data sets or trains, unless it has to draw images to check on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.exports.small_networks import blobs

PROGRAM = """
import sys
from pathlib import Path

import tlcli.__main__
import tlcli.cli.commands.export
from tlcli.cli.finetune_settings import finetune_config
from tlcli.exports import SmallerNumbers, export_backbone

models, *images = map(Path, sys.argv[1:])
exported = export_backbone(
    finetune_config(backbone="test_resnet", weights="none", seed=0),
    name="model",
    repository=models,
    methods=["gradcam"],
    image_paths=images,
    calibration_paths=images,
    numbers=SmallerNumbers("int8", max_accuracy_drop=100, min_map_correlation=-1) if images else None,
)
assert exported.path.is_file()
names = ("tlcli.training.data", "tlcli.training.engine", "tlcli.training.runs", "tlcli.training.features")
print(*(name for name in sys.modules if name.startswith(names)))
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(blobs(3)):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def imported(models: Path, *images: Path) -> list[str]:
    """Export `test_resnet` as `tlcli export` does, in a process of its own, and return the modules of training that it imported.

    With images the file is in int8, calibrated and checked on them.
    """
    answer = subprocess.run([sys.executable, "-c", PROGRAM, models, *images], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.split()


def test_images_given_by_path_to_check_and_calibrate_on_are_read_without_training(images: Path, tmp_path: Path) -> None:
    assert imported(tmp_path / "models", images) == []


def test_images_to_check_on_are_drawn_by_one_module(tmp_path: Path) -> None:
    modules = ["tlcli.training.data", "tlcli.training.data.drawing", "tlcli.training.data.drawing.draw_shape"]
    assert imported(tmp_path / "models") == modules
