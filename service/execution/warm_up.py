"""Warm-up runs of a model before it accepts requests. They allocate memory and measure the cost of maps and batches."""

from __future__ import annotations

from tlcli.contract.maps.method_names import COSTLY
from tlcli.contract.model.onnx_model import Model
from tlcli.service.execution.batching import MixedBatchPolicy
from tlcli.service.execution.session_tuning import BUDGET_S, blank_images, shortest_s


def warm_up(model: Model, max_size: int) -> MixedBatchPolicy:
    """Run single images and full batches, with and without maps, and return the measured costs.

    Costs are measured on as many images as the model computes in a quarter of a second, so that a large network is ready soon.

    Raises:
        Exception: ONNX Runtime failed to run the graph.
    """
    # Costly maps rerun the network after their layer. They are too expensive to add to images without maps in a mixed batch.
    maps = tuple(name for name in model.description.graph_maps if name.partition("@")[0] not in COSTLY)
    single, full = blank_images(model, 1), blank_images(model, max_size)
    model.run(single, methods=model.description.graph_maps)
    single_s = shortest_s(lambda: model.run(single))
    model.run(full, methods=maps)
    if max_size == 1 or not maps:
        return MixedBatchPolicy()
    batch = full[: max(2, int(BUDGET_S / single_s))]
    scores_s = shortest_s(lambda: model.run(batch))
    usual = "gradcam" if "gradcam" in maps else maps[0]  # other maps have a similar cost
    maps_s = shortest_s(lambda: model.run(batch, methods=[usual]))
    image_s = (scores_s - single_s) / (len(batch) - 1)
    return MixedBatchPolicy(frozenset(maps), run_s=max(0.0, single_s - image_s), map_s=max(0.0, maps_s - scores_s) / len(batch))
