"""Models in onnxruntime-web, the runtime of browsers, in Node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

PACKAGE = Path(os.environ.get("TLCLI_ONNXRUNTIME_WEB", Path(sys.prefix) / "web/node_modules/onnxruntime-web"))
"""Folder of the npm package; `make web` installs it."""

SCRIPT = Path(__file__).with_suffix(".mjs")

Values = npt.NDArray[np.generic]


def require() -> None:
    """Skip the test without Node and the package; fail if TLCLI_REQUIRE_ONNXRUNTIME_WEB=1."""
    missing = "node is not installed" if shutil.which("node") is None else f"{PACKAGE} does not exist: `make web` installs it"
    if shutil.which("node") is None or not PACKAGE.is_dir():
        if os.environ.get("TLCLI_REQUIRE_ONNXRUNTIME_WEB") == "1":
            pytest.fail(missing)
        pytest.skip(missing)


def version() -> str:
    """Return the package with its version, as npm names it."""
    package = json.loads((PACKAGE / "package.json").read_text())
    return f"{package['name']}@{package['version']}"


def run(model: Path, feeds: list[dict[str, Values]], folder: Path) -> list[dict[str, Values]]:
    """Return the outputs for each feed, by name.

    Args:
        model: path of the ONNX file.
        feeds: inputs by name, for one run each.
        folder: empty folder for inputs and outputs.
    """
    requests = []
    for number, feed in enumerate(feeds):
        place = folder / str(number)
        place.mkdir(parents=True)
        inputs = {}
        for name, values in feed.items():
            file = place / f"{name}.input"
            np.ascontiguousarray(values).tofile(file)
            inputs[name] = {"type": values.dtype.name, "dims": values.shape, "file": str(file)}
        requests.append({"model": str(model), "inputs": inputs, "folder": str(place)})
    (folder / "requests.json").write_text(json.dumps(requests))
    done = subprocess.run(["node", SCRIPT, PACKAGE, folder / "requests.json"], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return [_read(folder / str(number)) for number in range(len(feeds))]


def _read(folder: Path) -> dict[str, Values]:
    described = json.loads((folder / "outputs.json").read_text())
    return {name: np.fromfile(folder / f"{name}.bin", one["type"]).reshape(one["dims"]) for name, one in described.items()}
