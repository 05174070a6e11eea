"""The commands of docs/onnx_files.md, in order, on a small classifier that tells colours apart."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.exports.onnx_files import SIZE, Graph

PAGE = Path(__file__).parents[2] / "docs" / "onnx_files.md"
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a classifier for images from 0 to 255, its labels, and labelled images."""
    home = tmp_path_factory.mktemp("page")
    g = Graph()
    kernel = np.zeros((3, 3, 3, 3), dtype=np.float32)
    for channel in range(3):
        kernel[channel, channel] = 1 / 9
    x = g.add("Relu", g.add("Conv", "x", kernel), name="middle")
    x = g.add("Flatten", g.add("GlobalAveragePool", g.add("Relu", g.add("Conv", x, kernel))))
    weight = np.array([[-1, 0, 1], [0, 0, 0], [0, 0, 0]], dtype=np.float32)
    g.save(home / "classifier.onnx", g.add("Gemm", x, weight, np.array([64, 60, -150], dtype=np.float32)), shape=("N", 3, SIZE, SIZE))
    (home / "labels.txt").write_text("dark\nmiddle\nbright\n")
    for label, red in (("bright", 250), ("dark", 2), ("middle", 100)):
        (home / "photos" / label).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (20, 20), (red, 50, 120 - 40 * number)).save(home / "photos" / label / f"{number}.png")
    Image.new("RGB", (40, 30), (250, 10, 10)).save(home / "image.jpg")
    return home


def test_the_page_has_commands() -> None:
    assert len(LINES) >= 5
    assert all(line.startswith("tlcli ") for line in LINES)


@pytest.mark.parametrize("line", LINES)
def test_its_commands_run(line: str, home: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(line, shell=True, cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
