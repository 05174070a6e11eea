"""From a query to its answer: find the model, see the image, run, rank, draw. No protobuf, no gRPC."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import RequestError
from tlcli.contract.images.heatmap import MAX_SIDE
from tlcli.contract.images.network_input import NetworkInput
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.model.onnx_model import FIRST_RANKED, Answer, Model
from tlcli.service.decoding.image_pipeline import ImageInputs
from tlcli.service.decoding.memory_budget import MemoryBudget
from tlcli.service.decoding.request_image import from_pixels
from tlcli.service.execution.batching import Wanted
from tlcli.service.execution.runner import Runner
from tlcli.service.inference.map_request import fit
from tlcli.service.inference.render_map import draw
from tlcli.service.inference.time_limit import time_limit
from tlcli.service.repository.model_repository import Repository
from tlcli.service.system.thread_pool import Timed, Workers
from tlcli.service.telemetry.request_record import current_request, timed
from tlcli.service.types.answer import Classification, ClassMap, Prediction, Timings
from tlcli.service.types.query import MapQuery, Query

DEFAULT_TOP_K = 5

_CANVAS_BYTES, _PNG_BYTES = 24, 3
"""A pixel: of the images and numbers that a map is drawn of, and at most of a PNG."""


class Classifier:
    """Answers queries from a repository's models.

    Every step that takes time is awaited, so a query that is cancelled goes no further than the step it is in.
    """

    def __init__(
        self,
        repository: Repository,
        image_inputs: ImageInputs,
        image_workers: Workers,
        budget: MemoryBudget,
        max_maps: int,
        max_image_s: float,
    ) -> None:
        """image_workers: draw. max_maps: of a request. max_image_s: see `tlcli.service.inference.time_limit`."""
        self._repository = repository
        self._image_inputs = image_inputs
        self._image_workers = image_workers
        self._budget = budget
        self._max_maps = max_maps
        self._max_image_s = max_image_s

    async def classify(self, query: Query, patient: bool = False) -> Classification:
        """Answer one query.

        Args:
            query: what is asked.
            patient: wait for a place in the model's queue, where there is none, instead of being refused.

        Raises:
            OverloadedError: as many wait for the model as may.
            MemoryLimitError: no memory for it at the moment.
            NotFoundError, ModelFileError, ServerError: see `Repository.find`.
            RequestError: a class, a method, a number or a length that does not fit the model.
            ImageError: see `tlcli.contract.images.decoding.decode`.
            TimeLimitError: it took too long.
        """
        current_request().note_request(query.request_id, images=1)
        served = self._repository.find(query.model, query.version)
        model = served.runner.model
        top_k = _top_k(query.top_k, model.num_classes)
        wanted = Wanted() if query.map is None else self._wanted(query.map, served.name, model)
        queue = served.queue(wanted.methods)
        place = await queue.enter_in_turn() if patient else queue.enter()
        async with time_limit(self._max_image_s):
            try:
                seen, ran = await self._see_and_run(query, served.runner, wanted, place.leave)
            finally:
                place.leave()
            with self._budget.lease() as drawing:
                await drawing.grow_to(_drawing_bytes(query.map, model.description.preprocessing))
                drawn = await self._draw(query.map, ran.value, seen.value, model.description.preprocessing)
        return Classification(
            request_id=query.request_id,
            model=served.name,
            version=str(served.version),
            predictions=_predictions(ran.value, {class_id: one.value for class_id, one in drawn.items()}, top_k, model.description.labels),
            timings=Timings(
                decode_time_ns=seen.took_ns,
                queue_time_ns=seen.waited_ns + ran.waited_ns + sum(one.waited_ns for one in drawn.values()),
                infer_time_ns=ran.took_ns,
                render_time_ns=sum(one.took_ns for one in drawn.values()),
            ),
        )

    def _wanted(self, query: MapQuery, name: str, model: Model) -> Wanted:
        return fit(
            model,
            name,
            targets=tuple(dict.fromkeys(query.classes)) or (FIRST_RANKED,),
            methods=(query.method,),
            softmax=query.softmax,
            max_channels=query.max_channels,
            max_maps=self._max_maps,
        )

    async def _see_and_run(
        self, query: Query, runner: Runner, wanted: Wanted, on_turn: Callable[[], None]
    ) -> tuple[Timed[NetworkInput], Timed[Answer]]:
        preprocessing = runner.model.description.preprocessing
        keep_image = query.map is not None and query.map.map_format == "overlay"
        if query.encoded is not None:
            return await self._image_inputs.see_and_submit(runner, query.encoded, wanted, keep_image, on_turn)
        if query.pixels is not None:
            seen = Timed(from_pixels(query.pixels, preprocessing, keep_image), waited_ns=0, took_ns=0)
            return seen, await runner.submit(seen.value.images, wanted, on_turn)
        raise RequestError("the request holds no image: set `encoded` to an image's bytes, or `pixels` to an input of the model's size")

    async def _draw(
        self, query: MapQuery | None, answer: Answer, seen: NetworkInput, preprocessing: Preprocessing
    ) -> dict[int, Timed[ClassMap]]:
        if query is None or answer.classes is None:
            return {}
        # A class asked for by its id and by its rank is drawn once.
        values: Mapping[int, npt.NDArray[Any]] = dict(zip(answer.classes[0].tolist(), answer.maps[query.method][0], strict=True))
        if query.map_format == "raw":
            return {class_id: Timed(draw(one, query, seen, preprocessing), waited_ns=0, took_ns=0) for class_id, one in values.items()}
        # One after another: a request for many maps takes its turn between the images of others.
        return {
            class_id: await timed("render", self._image_workers.do(draw, one, query, seen, preprocessing))
            for class_id, one in values.items()
        }


def _drawing_bytes(query: MapQuery | None, preprocessing: Preprocessing) -> int:
    """Return the memory that drawing takes, one map at a time, and the drawn maps until they are sent; almost none for raw maps."""
    if query is None or query.map_format == "raw":
        return 0
    pixels = MAX_SIDE**2 if query.map_format == "overlay" else preprocessing.width * preprocessing.height
    return pixels * (_CANVAS_BYTES + _PNG_BYTES * max(1, len(query.classes)))


def _top_k(asked: int, classes: int) -> int:
    if asked < 0:
        raise RequestError(f"top_k {asked}: expected 1 or more, or 0 for {DEFAULT_TOP_K}")
    return min(asked or DEFAULT_TOP_K, classes)


def _predictions(answer: Answer, maps: Mapping[int, ClassMap], top_k: int, labels: tuple[str, ...]) -> tuple[Prediction, ...]:
    scores, logits = answer.scores[0], answer.logits[0]
    # By logits, as the graph ranks: far-off classes share a score of 0. Equals stand in the order of their ids, as in ONNX's TopK.
    order = np.argsort(-logits, kind="stable")
    rank_of = np.empty_like(order)
    rank_of[order] = np.arange(1, len(order) + 1)
    best = order[:top_k].tolist()
    others = sorted(maps.keys() - set(best), key=lambda class_id: int(rank_of[class_id]))
    return tuple(
        Prediction(
            class_id=class_id,
            label=labels[class_id],
            score=float(scores[class_id]),
            rank=int(rank_of[class_id]),
            logit=float(logits[class_id]),
            map=maps.get(class_id),
        )
        for class_id in [*best, *others]
    )
