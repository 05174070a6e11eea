"""First runs of a model, before it takes requests: they allocate memory, and measure the cost of maps and batches."""

from __future__ import annotations

from tlcli.contract.model.onnx_model import Model
from tlcli.service.execution.batching import MixedBatchPolicy
from tlcli.service.execution.session_tuning import BUDGET_S, blank_images, shortest_s

_COSTLY = "ablationcam"
"""Map that runs the network behind its layer again for each channel: never added to a batch for the sake of mixing."""


def warm_up(model: Model, max_size: int) -> MixedBatchPolicy:
    """Run single images and full batches, with maps and without, and return the measured costs.

    Costs are measured on as many images as a quarter of a second computes, so that a large network is ready soon.

    Raises:
        Exception: any error of ONNX Runtime while it runs the graph.
    """
    maps = tuple(name for name in model.description.graph_maps if name.partition("@")[0] != _COSTLY)
    single, full = blank_images(model, 1), blank_images(model, max_size)
    model.run(single, methods=model.description.graph_maps)
    single_s = shortest_s(lambda: model.run(single))
    model.run(full, methods=maps)
    if max_size == 1 or not maps:
        return MixedBatchPolicy()
    batch = full[: max(2, int(BUDGET_S / single_s))]
    scores_s = shortest_s(lambda: model.run(batch))
    usual = "gradcam" if "gradcam" in maps else maps[0]  # the other maps cost about as much
    maps_s = shortest_s(lambda: model.run(batch, methods=[usual]))
    image_s = (scores_s - single_s) / (len(batch) - 1)
    return MixedBatchPolicy(frozenset(maps), run_s=max(0.0, single_s - image_s), map_s=max(0.0, maps_s - scores_s) / len(batch))
