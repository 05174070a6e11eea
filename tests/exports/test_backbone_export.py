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
from tlcli.__main__ import main

try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
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


def imported(*arguments: object) -> list[str]:
    """Export `test_resnet` in a process of its own, and return the modules of training that it imported."""
    flags = ["export", "--backbone", "test_resnet", "--weights", "none", "--methods", "gradcam", "--quiet", *map(str, arguments)]
    answer = subprocess.run([sys.executable, "-c", PROGRAM, *flags], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    path, modules = answer.stdout.splitlines()
    assert Path(path).is_file()
    return modules.split()


def test_images_given_by_path_to_check_and_calibrate_on_are_read_without_training(images: Path, tmp_path: Path) -> None:
    calibration = ("--precision", "int8", "--calibration", images, "--max-accuracy-drop", 100, "--min-map-correlation", -1)
    assert imported("--images", images, *calibration, "--models", tmp_path / "models") == []


def test_images_to_check_on_are_drawn_by_one_module(tmp_path: Path) -> None:
    assert imported("--models", tmp_path / "models") == ["tlcli.training.data", "tlcli.training.data.draw_shape"]
