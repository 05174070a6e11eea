"""The first runs of a model, before it takes requests: they allocate, and show what maps and batches cost."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from contract.model import Model
from service.batching import Sharing

_BUDGET_S = 0.25
"""For each of the figures; a run that takes longer is timed once."""

_COSTLY = "ablationcam"
"""Runs what follows the layer again for each channel: never for company's sake."""


_LIGHT_S = 0.0015


def is_light(model: Model) -> bool:
    """Whether a run is so short that threads wait for each other about as long as they compute.

    Such a model does best with one thread: the other cores decode meanwhile, which then is most of the work.
    """
    one = _blank(model, 1)
    model.run(one)
    return _shortest_s(lambda: model.run(one)) < _LIGHT_S


def warm_up(model: Model, max_size: int) -> Sharing:
    """Run single pictures and full batches, with maps and without.

    Raises:
        Exception: what ONNX Runtime raises where the graph loads and does not run.
    """
    maps = tuple(name for name in model.description.graph_maps if name.partition("@")[0] != _COSTLY)
    one, full = _blank(model, 1), _blank(model, max_size)
    model.run(one, methods=model.description.graph_maps)
    single_s = _shortest_s(lambda: model.run(one))
    model.run(full, methods=maps)
    scores_s = _shortest_s(lambda: model.run(full))
    if max_size == 1 or not maps:
        return Sharing()
    usual = "gradcam" if "gradcam" in maps else maps[0]  # the others' prices are near it
    maps_s = _shortest_s(lambda: model.run(full, methods=[usual]))
    picture_s = (scores_s - single_s) / (max_size - 1)
    return Sharing(frozenset(maps), run_s=max(0.0, single_s - picture_s), map_s=max(0.0, maps_s - scores_s) / max_size)


def _blank(model: Model, pictures: int) -> npt.NDArray[np.uint8]:
    size = model.description.preprocessing
    return np.zeros((pictures, size.height, size.width, 3), dtype=np.uint8)


def _shortest_s(run: Callable[[], object]) -> float:
    times: list[float] = []
    while sum(times) < _BUDGET_S and len(times) < 3:
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return min(times)
