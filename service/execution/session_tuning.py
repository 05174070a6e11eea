"""Load-time benchmark that selects the fastest session options for a model on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlcli.contract.model.cuda_options import Cuda
from tlcli.contract.model.onnx_model import Model

BUDGET_S = 0.25
"""Time budget per measurement in seconds."""

_LIGHT_S = 0.0015


@dataclass(frozen=True)
class Opened:
    """Loaded model.

    how: readable description of the device and options, written to the log.
    """

    model: Model
    how: str


def open_fastest(path: Path, device: str, threads: int, cuda: Cuda, images: int) -> Opened:
    """Load a model with the fastest session options.

    Args:
        path, device, cuda: see `onnx_model.Model.open`. On a GPU, the convolution layout is measured instead of being taken from `cuda`.
        threads: number of ONNX Runtime threads; 0 uses all cores, or a single thread if a run is short (see `is_light`).
        images: number of images in a full batch.

    Raises:
        ModelFileError, DeviceError: see `tlcli.contract.model.onnx_model.Model.open`.
        Exception: ONNX Runtime failed to run the graph.
    """
    model = Model.open(path, device, threads, cuda)
    if model.device == "cuda":
        fastest = _faster_layout(model, Model.open(path, device, threads, replace(cuda, channels_last=True)), images)
        del model
        layout = replace(cuda, channels_last=fastest.channels_last)
        sizes = sorted({1, images})
        return Opened(Model.open(path, device, threads, layout, batch_sizes=sizes), fastest.how)
    if not threads and is_light(model):
        return Opened(Model.open(path, device, threads=1), "cpu with one thread")
    return Opened(model, "cpu")


def is_light(model: Model) -> bool:
    """Return True if a run is so short that its threads would spend about as much time on synchronization as on computation.

    Such a model is fastest with one thread. The other cores decode images meanwhile, which is most of the work for such a model.
    """
    image = blank_images(model, 1)
    model.run(image)
    return shortest_s(lambda: model.run(image), budget_s=10 * _LIGHT_S) < _LIGHT_S


@dataclass(frozen=True)
class _Layout:
    channels_last: bool
    how: str


def _faster_layout(first: Model, last: Model, images: int) -> _Layout:
    """Return the faster convolution layout of two sessions of one model, `first` with channels first and `last` with channels last."""
    batch = blank_images(first, images)
    times = {}
    for model in (first, last):
        model.run(batch)
        times[model] = shortest_s(lambda model=model: model.run(batch))  # type: ignore[misc]
    faster, slower = (first, last) if times[first] <= times[last] else (last, first)
    name, other = ("channels first", "channels last") if faster is first else ("channels last", "channels first")
    how = f"cuda, {name} ({1000 * times[faster]:.2f} ms for {images} images; {other} takes {1000 * times[slower]:.2f} ms)"
    return _Layout(faster is last, how)


def blank_images(model: Model, images: int) -> npt.NDArray[np.uint8]:
    """Return black images of the model's input size for timing runs."""
    size = model.description.preprocessing
    return np.zeros((images, size.height, size.width, 3), dtype=np.uint8)


def shortest_s(run: Callable[[], object], budget_s: float = BUDGET_S) -> float:
    """Return the shortest duration in seconds of up to three runs.

    At least one run is timed; further runs are timed only while they fit the budget.
    """
    times: list[float] = []
    while not times or (len(times) < 3 and sum(times) + min(times) <= budget_s):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return min(times)
