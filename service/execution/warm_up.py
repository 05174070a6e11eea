"""The first runs of a model, before it takes requests: they allocate, and show what maps and batches cost."""

from __future__ import annotations

from tlcli.contract.model.onnx_model import Model
from tlcli.service.execution.batching import Sharing
from tlcli.service.execution.session_tuning import BUDGET_S, blank, shortest_s

_COSTLY = "ablationcam"
"""Runs what follows the layer again for each channel: never for company's sake."""


def warm_up(model: Model, max_size: int) -> Sharing:
    """Run single images and full batches, with maps and without.

    Prices are measured on as many images as a quarter of a second computes, so that a large network is ready soon.

    Raises:
        Exception: what ONNX Runtime raises where the graph loads and does not run.
    """
    maps = tuple(name for name in model.description.graph_maps if name.partition("@")[0] != _COSTLY)
    one, full = blank(model, 1), blank(model, max_size)
    model.run(one, methods=model.description.graph_maps)
    single_s = shortest_s(lambda: model.run(one))
    model.run(full, methods=maps)
    if max_size == 1 or not maps:
        return Sharing()
    some = full[: max(2, int(BUDGET_S / single_s))]
    scores_s = shortest_s(lambda: model.run(some))
    usual = "gradcam" if "gradcam" in maps else maps[0]  # the others' prices are near it
    maps_s = shortest_s(lambda: model.run(some, methods=[usual]))
    image_s = (scores_s - single_s) / (len(some) - 1)
    return Sharing(frozenset(maps), run_s=max(0.0, single_s - image_s), map_s=max(0.0, maps_s - scores_s) / len(some))
