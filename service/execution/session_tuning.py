"""Choice of the fastest way to run a model on this machine, measured when the model is loaded."""

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
"""Time for each measurement, in seconds."""

_LIGHT_S = 0.0015


@dataclass(frozen=True)
class Opened:
    """Loaded model. how: device and options in words, for the log."""

    model: Model
    how: str


def open_fastest(path: Path, device: str, threads: int, cuda: Cuda, images: int) -> Opened:
    """Load a model with the options that run fastest.

    Args:
        path, device, cuda: see `onnx_model.Model.open`; on a GPU the layout of convolutions is measured, not taken from `cuda`.
        threads: threads of ONNX Runtime; 0 takes every core, or one where a run is short (`is_light`).
        images: number of images in a full batch.

    Raises:
        ModelFileError, DeviceError: see `tlcli.contract.model.onnx_model.Model.open`.
        Exception: any error of ONNX Runtime while it runs the graph.
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
    """Return True if a run is so short that threads wait for each other about as long as they compute.

    Such a model is fastest with one thread: the other cores decode meanwhile, which then is most of the work.
    """
    image = blank_images(model, 1)
    model.run(image)
    return shortest_s(lambda: model.run(image), budget_s=10 * _LIGHT_S) < _LIGHT_S


@dataclass(frozen=True)
class _Layout:
    channels_last: bool
    how: str


def _faster_layout(first: Model, last: Model, images: int) -> _Layout:
    """Compare two sessions of one model, channels first and channels last."""
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
    """Return black images of the model's input size, to measure runs with."""
    size = model.description.preprocessing
    return np.zeros((images, size.height, size.width, 3), dtype=np.uint8)


def shortest_s(run: Callable[[], object], budget_s: float = BUDGET_S) -> float:
    """Return the shortest time of up to three runs in seconds: of as many as the budget allows, and at least of one."""
    times: list[float] = []
    while not times or (len(times) < 3 and sum(times) + min(times) <= budget_s):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return min(times)
