"""Classifier that processes queries: finds the model, decodes the image, runs the model, ranks classes and renders maps.

This module is independent of protobuf and gRPC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import RequestError
from tlcli.contract.images import heatmap
from tlcli.contract.images.network_input import NetworkInput
from tlcli.contract.images.preprocessing import Box, Preprocessing
from tlcli.contract.model.description import Description
from tlcli.contract.model.explain_labels import first_targets, keep_assigned, missing_targets
from tlcli.contract.model.onnx_model import FIRST_RANKED, Answer, Model
from tlcli.service.decoding.image_pipeline import from_pixels
from tlcli.service.execution.batching import MapRequest
from tlcli.service.execution.runner import Runner
from tlcli.service.inference.request_checks import check_map_request, parse_classes, time_limit
from tlcli.service.inference.resources import Resources
from tlcli.service.repository.model_repository import ServedVersion
from tlcli.service.system.thread_pool import Timed
from tlcli.service.telemetry.request_record import current_request, timed
from tlcli.service.types.answer import Classification, ClassMap, Prediction, Timings
from tlcli.service.types.query import MapQuery, Query

DEFAULT_TOP_K = 5

_CANVAS_BYTES, _PNG_BYTES = 24, 3
"""Bytes per pixel for rendering a map: for the intermediate images and arrays, and the maximum for the PNG."""


class Classifier:
    """Image classifier that processes queries from the models of a repository.

    Every time-consuming step is awaited, so a cancelled query stops after its current step.
    """

    def __init__(self, resources: Resources) -> None:
        """Create a classifier that uses `resources`."""
        self._resources = resources

    def parse_classes(self, text: str, model: str, version: str) -> tuple[int, ...]:
        """Parse a list of class labels, ids and ranks of a model; see `tlcli.service.inference.request_checks.parse_classes`.

        Raises:
            RequestError: a class does not exist, or several classes share a label.
            NotFoundError, ModelFileError, ServerError: see `Repository.find`.
        """
        return parse_classes(text, self._resources.repository.find(model, version).runner.model.description.labels)

    async def classify(self, query: Query, patient: bool = False) -> Classification:
        """Process one query.

        Args:
            query: the image and the outputs to compute.
            patient: wait for a slot when the model's queue is full instead of raising `OverloadedError`.

        Raises:
            OverloadedError: the model's queue is full.
            MemoryLimitError: not enough memory is free.
            NotFoundError, ModelFileError, ServerError: see `Repository.find`.
            RequestError: the model does not accept a class, method, number or length in the query.
            ImageError: see `tlcli.contract.images.decoding.decode`.
            TimeLimitError: the query exceeded its time limit.
        """
        current_request().note_request(query.request_id, images=1)
        served = self._resources.repository.find(query.model, query.version)
        model = served.runner.model
        preprocessing = model.description.preprocessing
        top_k = _top_k(query.top_k, model)
        request = MapRequest() if query.map is None else self._check(query.map, served.name, model)
        queue = served.queue(request.methods)
        slot = await queue.acquire_in_turn() if patient else queue.acquire()
        async with time_limit(self._resources.max_image_s):
            try:
                decoded, answer = await self._decode_and_run(query, served.runner, request, slot.release)
            finally:
                slot.release()
            if query.map is not None and explains_labels(query.map, model):
                answer = await self._explain_others(query.map, served, decoded.value, answer)
                answer = replace(answer, value=_with_labels_only(model, answer.value))
            with self._resources.budget.lease() as lease:
                await lease.grow_to(_render_bytes(query.map, answer.value, preprocessing))
                maps = await self._render_maps(query.map, answer.value, decoded.value, preprocessing)
        return Classification(
            request_id=query.request_id,
            model=served.name,
            version=str(served.version),
            predictions=_predictions(
                answer.value, {class_id: rendered.value for class_id, rendered in maps.items()}, top_k, model.description
            ),
            task=model.description.task,
            timings=Timings(
                decode_time_ns=decoded.took_ns,
                queue_time_ns=decoded.waited_ns + answer.waited_ns + sum(rendered.waited_ns for rendered in maps.values()),
                infer_time_ns=answer.took_ns,
                render_time_ns=sum(rendered.took_ns for rendered in maps.values()),
            ),
        )

    async def _explain_others(self, query: MapQuery, served: ServedVersion, decoded: NetworkInput, answer: Timed[Answer]) -> Timed[Answer]:
        """Run the model again if the image has labels that the first run did not explain."""
        model = served.runner.model
        targets = missing_targets(model, answer.value)
        if targets is None:
            return answer
        request = self._check(query, served.name, model, tuple(targets[0].tolist()))
        slot = await served.queue(request.methods).acquire_in_turn()
        try:
            again = await served.runner.submit(decoded.images, request, slot.release)
        finally:
            slot.release()
        return Timed(again.value, answer.waited_ns + again.waited_ns, answer.took_ns + again.took_ns)

    def _check(self, query: MapQuery, name: str, model: Model, labels: tuple[int, ...] = ()) -> MapRequest:
        ranks = first_targets(model)[: self._resources.max_maps] if explains_labels(query, model) else (FIRST_RANKED,)
        return check_map_request(
            model,
            name,
            targets=labels or tuple(dict.fromkeys(query.classes)) or ranks,
            methods=(query.method,),
            softmax=query.softmax,
            max_channels=query.max_channels,
            max_maps=self._resources.max_maps,
        )

    async def _decode_and_run(
        self, query: Query, runner: Runner, request: MapRequest, free_slot: Callable[[], None]
    ) -> tuple[Timed[NetworkInput], Timed[Answer]]:
        preprocessing = runner.model.description.preprocessing
        keep_image = query.map is not None and query.map.map_format == "overlay"
        if query.encoded is not None:
            return await self._resources.image_pipeline.decode_and_submit(runner, query.encoded, request, keep_image, free_slot)
        if query.pixels is not None:
            decoded = Timed(from_pixels(query.pixels, preprocessing, keep_image), waited_ns=0, took_ns=0)
            return decoded, await runner.submit(decoded.value.images, request, free_slot)
        raise RequestError("the request holds no image: set `encoded` to an image's bytes, or `pixels` to an input of the model's size")

    async def _render_maps(
        self, query: MapQuery | None, answer: Answer, decoded: NetworkInput, preprocessing: Preprocessing
    ) -> dict[int, Timed[ClassMap]]:
        if query is None or answer.classes is None:
            return {}
        # A class that is requested both by its id and by its rank is rendered once.
        maps: Mapping[int, npt.NDArray[Any]] = dict(zip(answer.classes[0].tolist(), answer.maps[query.method][0], strict=True))
        if query.map_format == "raw":
            return {class_id: Timed(render_map(values, query, decoded, preprocessing), 0, 0) for class_id, values in maps.items()}
        # Render one map at a time, so that a request for many maps alternates with other requests' images.
        return {
            class_id: await timed("render", self._resources.image_workers.do(render_map, values, query, decoded, preprocessing))
            for class_id, values in maps.items()
        }


def render_map(values: npt.NDArray[np.float32], query: MapQuery, decoded: NetworkInput, preprocessing: Preprocessing) -> ClassMap:
    """Render one class's map in the requested format: raw values, a heat map, or an overlay.

    Args:
        values: unnormalised map, float32 `[h, w]`.
        query: query that specifies the format; an overlay needs `decoded.image`.
        decoded: the network's input.
        preprocessing: preprocessing of the network, whose input size is the size of a heat map.
    """
    png = None
    if query.map_format == "heat_map":
        png = heatmap.encode(heatmap.heat_map(values, preprocessing.width, preprocessing.height))
    elif query.map_format == "overlay":
        assert decoded.image is not None, "kept for overlays"
        png = heatmap.encode(heatmap.overlay(decoded.image, values, _scaled(decoded.box, decoded.scale)))
    height, width = values.shape
    return ClassMap(query.method, height, width, values if png is None else None, png, decoded.box)


def _scaled(box: Box, scale: float) -> Box:
    left, top, right, bottom = box
    return left * scale, top * scale, right * scale, bottom * scale


def explains_labels(query: MapQuery, model: Model) -> bool:
    """Return True if a request is for the maps of every label that a model with several labels per image assigns."""
    return model.description.task == "multi-label" and not query.classes


def _with_labels_only(model: Model, answer: Answer) -> Answer:
    """Return the answer for one image with the maps of its assigned labels alone."""
    classes, maps = keep_assigned(model, answer, 0)
    return replace(answer, classes=classes[None], maps={name: values[None] for name, values in maps.items()})


def _render_bytes(query: MapQuery | None, answer: Answer, preprocessing: Preprocessing) -> int:
    """Return the bytes needed to render maps one at a time and to hold the PNGs until they are sent.

    Return 0 for raw maps, which take almost no memory.
    """
    if query is None or query.map_format == "raw":
        return 0
    pixels = heatmap.MAX_SIDE**2 if query.map_format == "overlay" else preprocessing.width * preprocessing.height
    maps = 1 if answer.classes is None else answer.classes.shape[1]
    return pixels * (_CANVAS_BYTES + _PNG_BYTES * max(1, maps))


def _top_k(top_k: int, model: Model) -> int:
    if top_k < 0:
        raise RequestError(f"top_k {top_k}: expected 1 or more, or 0 for {DEFAULT_TOP_K}")
    default = 0 if model.description.task == "multi-label" else DEFAULT_TOP_K
    return min(top_k or default, model.num_classes)


def _predictions(answer: Answer, maps: Mapping[int, ClassMap], top_k: int, description: Description) -> tuple[Prediction, ...]:
    scores, logits = answer.scores[0], answer.logits[0]
    # Rank by logits, as the graph does, because unlikely classes share a score of 0. Ties are ordered by id, as in ONNX's TopK.
    order = np.argsort(-logits, kind="stable")
    rank_of = np.empty_like(order)
    rank_of[order] = np.arange(1, len(order) + 1)
    assigned = description.assigned(scores)
    best = sorted({*order[:top_k].tolist(), *assigned}, key=lambda class_id: int(rank_of[class_id]))
    others = sorted(maps.keys() - set(best), key=lambda class_id: int(rank_of[class_id]))
    return tuple(
        Prediction(
            class_id=class_id,
            label=description.labels[class_id],
            score=float(scores[class_id]),
            rank=int(rank_of[class_id]),
            logit=float(logits[class_id]),
            map=maps.get(class_id),
            assigned=class_id in assigned,
            threshold=description.thresholds[class_id] if description.thresholds else 0.0,
        )
        for class_id in [*best, *others]
    )
