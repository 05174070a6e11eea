"""Memory of a run on an image whose size differs from the model's, measured when a model with dynamic input size is loaded."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from tlcli.contract.maps.method_names import COSTLY
from tlcli.contract.model.onnx_model import Model
from tlcli.service.execution.session_tuning import blank_images

_DEFAULT_PIXEL_BYTES = 400.0
"""Bytes per pixel assumed when the memory cannot be measured. A ResNet-50 takes 390."""

_MARGIN = 1.25
_MIN_PIXEL_BYTES = 16.0
_SIDES = 2
"""Side length of the measured image as a multiple of the model's own input sides: large enough for a measurable difference."""


def pixel_bytes(model: Model, proc: Path = Path("/proc/self")) -> float:
    """Measure the memory per pixel that a run with a map takes on an image whose size differs from the model's.

    Args:
        model: the model to run.
        proc: directory of this process in the proc file system.

    Returns:
        Bytes per pixel; 0 on a GPU and for a model with a fixed input size.

    Raises:
        Exception: ONNX Runtime failed to run the graph.
    """
    if not model.description.dynamic_size or model.device != "cpu":
        return 0.0
    own = model.description.preprocessing
    large = np.zeros((1, _SIDES * own.height, _SIDES * own.width, 3), np.uint8)
    methods = [name for name in model.description.graph_maps if name.partition("@")[0] not in COSTLY][:1]
    model.run(blank_images(model, 1), shrink=True)
    before = _status_bytes(proc, "VmRSS")
    try:
        (proc / "clear_refs").write_text("5")  # resets the high-water mark, VmHWM
    except OSError:
        return _DEFAULT_PIXEL_BYTES
    model.run(large, methods=methods)
    if not before:
        return _DEFAULT_PIXEL_BYTES
    return max(_MIN_PIXEL_BYTES, _MARGIN * (_status_bytes(proc, "VmHWM") - before) / (large.shape[1] * large.shape[2]))


def _status_bytes(proc: Path, name: str) -> int:
    with suppress(OSError, IndexError, ValueError):
        return int((proc / "status").read_text().split(f"{name}:")[1].split()[0]) * 1024
    return 0
