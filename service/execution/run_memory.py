"""Memory of a run on an image of an odd size, measured when a model that accepts any size is opened."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from tlcli.contract.model.onnx_model import Model
from tlcli.service.execution.session_tuning import blank

_USUAL_PIXEL_BYTES = 400.0
"""Fallback where it cannot be measured; a ResNet-50 takes 390."""

_MARGIN = 1.25
_LEAST_PIXEL_BYTES = 16.0
_SIDES = 2
"""Measured at this multiple of the model's own sides: enough to be seen."""


def pixel_bytes(model: Model, proc: Path = Path("/proc/self")) -> float:
    """Return the memory that a run with a map takes for each pixel of an image of another size than the model's; 0 if it takes none.

    Raises:
        Exception: what ONNX Runtime raises where the graph does not run.
    """
    if not model.description.dynamic_size or model.device != "cpu":
        return 0.0
    own = model.description.preprocessing
    large = np.zeros((1, _SIDES * own.height, _SIDES * own.width, 3), np.uint8)
    methods = [name for name in model.description.graph_maps if not name.startswith("ablationcam")][:1]
    model.run(blank(model, 1), shrink=True)
    before = _status_bytes(proc, "VmRSS")
    try:
        (proc / "clear_refs").write_text("5")  # the highest mark begins anew
    except OSError:
        return _USUAL_PIXEL_BYTES
    model.run(large, methods=methods)
    if not before:
        return _USUAL_PIXEL_BYTES
    return max(_LEAST_PIXEL_BYTES, _MARGIN * (_status_bytes(proc, "VmHWM") - before) / (large.shape[1] * large.shape[2]))


def _status_bytes(proc: Path, name: str) -> int:
    with suppress(OSError, IndexError, ValueError):
        return int((proc / "status").read_text().split(f"{name}:")[1].split()[0]) * 1024
    return 0
