"""The Open Inference Protocol's questions, answered from a repository: tensors in, tensors out. No protobuf, no gRPC.

Each image of a request goes to the model's queue by itself, so that it shares runs with those of other requests, and takes a place there
like one that came alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import ImageError, RequestError, TlcliError
from tlcli.contract.images.decoding import ImageLimits
from tlcli.contract.maps.scorecam import is_score_cam
from tlcli.contract.model.description import CLASSES, IMAGES, LOGITS, SCORES, SOFTMAX, TARGETS, Description
from tlcli.contract.model.onnx_model import FIRST_RANKED, Answer
from tlcli.service.decoding.image_pipeline import ImageInputs
from tlcli.service.decoding.memory_budget import MemoryBudget
from tlcli.service.execution.admission import Place
from tlcli.service.execution.batching import Wanted
from tlcli.service.inference.map_request import fit
from tlcli.service.inference.time_limit import time_limit
from tlcli.service.repository.model_repository import Repository, Served
from tlcli.service.system.thread_pool import Workers
from tlcli.service.telemetry.request_record import current_request
from tlcli.service.types.answer import ModelState
from tlcli.service.types.tensor import ANY_SIZE, BOOL, BYTES, FP32, INT64, UINT8, InputTensor, OutputTensor, TensorSpec

ENCODED, MAX_CHANNELS = "encoded", "max_channels"
"""Inputs that the graph does not have: images to decode, and how many channels a Score-CAM looks through."""

PLATFORM = "onnxruntime_onnx"

STATES = {
    ModelState.READY: "READY",
    ModelState.LOADING: "LOADING",
    ModelState.FAILED: "UNAVAILABLE",
    ModelState.UNLOADED: "UNAVAILABLE",
}
"""As Triton names them in the repository's index."""

_NOT_OFFERED = ("shared_memory_region", "classification")
"""Parameters of tensors that would change what an answer means; others may be ignored."""

T = TypeVar("T")


@dataclass(frozen=True)
class InferQuery:
    """Images and what is asked of them.

    model: its name; empty where the server holds one only.
    version: empty for the latest.
    request_id: comes back in the answer.
    inputs: by name.
    outputs: their names; none: scores and logits.
    """

    model: str
    version: str
    request_id: str
    inputs: Mapping[str, InputTensor]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, model: str, version: str, request_id: str, inputs: Sequence[InputTensor], outputs: Sequence[str]) -> InferQuery:
        """Of tensors as they came.

        Raises:
            RequestError: one comes twice.
        """
        by_name: dict[str, InputTensor] = {}
        for tensor in inputs:
            if tensor.name in by_name:
                raise RequestError(f"input {tensor.name!r} came twice")
            by_name[tensor.name] = tensor
        if len(set(outputs)) < len(outputs):
            raise RequestError(f"an output is asked for twice among {', '.join(outputs)}")
        return cls(model, version, request_id, by_name, tuple(outputs))


@dataclass(frozen=True)
class InferAnswer:
    """What was asked for, in the order of the question; model and version are those that answered."""

    model: str
    version: str
    request_id: str
    outputs: tuple[OutputTensor, ...]


@dataclass(frozen=True)
class ModelTensors:
    """What a model takes and gives. versions: those that answer."""

    model: str
    versions: tuple[str, ...]
    labels: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def check_parameters(where: str, parameters: Container[str]) -> None:
    """Of an input or an output.

    Raises:
        RequestError: one of them is not offered.
    """
    for name in _NOT_OFFERED:
        if name in parameters:
            raise RequestError(f"{where}: its parameter {name!r} is not offered here: leave it out, and send and take plain values")


class OpenInference:
    """Answers the protocol's questions from a repository's models."""

    def __init__(
        self,
        repository: Repository,
        image_inputs: ImageInputs,
        image_workers: Workers,
        budget: MemoryBudget,
        limits: ImageLimits,
        max_maps: int,
        max_image_s: float,
    ) -> None:
        """image_workers: read tensors that came value by value.
        max_maps: classes to explain in a request. max_image_s: see `tlcli.service.inference.time_limit`; of all images of a request."""
        self._repository = repository
        self._image_inputs = image_inputs
        self._budget = budget
        self._image_workers = image_workers
        self._limits = limits
        self._max_maps = max_maps
        self._max_image_s = max_image_s

    def is_ready(self, model: str, version: str) -> bool:
        """Whether a model, or a version of it, answers; one that nobody knows does not."""
        try:
            self._repository.find(model, version)
        except TlcliError:
            return False
        return True

    def describe(self, model: str, version: str) -> ModelTensors:
        """What a model takes and gives.

        Raises:
            NotFoundError, ModelFileError, ServerError: see `Repository.find`.
        """
        served = self._repository.find(model, version)
        description = served.runner.model.description
        statuses = self._repository.statuses()
        return ModelTensors(
            model=served.name,
            versions=tuple(one.version for one in statuses if one.name == served.name and one.state is ModelState.READY),
            labels=description.labels,
            inputs=tuple(_inputs(description).values()),
            outputs=tuple(_outputs(description).values()),
        )

    async def infer(self, query: InferQuery) -> InferAnswer:
        """Answer one query, cancelled as a whole where one of its images fails.

        Raises:
            NotFoundError, ModelFileError, ServerError: see `Repository.find`.
            RequestError: a tensor that the model does not take or give, or a class, a map or a number that does not fit it.
            OverloadedError: there are not as many places in the model's queue as images came.
            MemoryLimitError: no memory for it at the moment.
            ImageError: see `tlcli.contract.images.decoding.decode`.
            TimeLimitError: they took too long.
        """
        current_request().note_request(query.request_id, images=0)
        served = self._repository.find(query.model, query.version)
        images = self._check(query, served)
        current_request().note_request(query.request_id, images)
        asked = query.outputs or (SCORES, LOGITS)
        places = served.queue(asked).enter_all(images)
        try:
            wanted = self._wanted(query, served, asked, images)
            async with time_limit(self._max_image_s * images):
                answers = await _all_or_none(await self._rows(query, served, wanted, places))
        finally:
            for place in places:
                place.leave()
        values = {name: np.concatenate([_output(name, answer, one) for answer, one in zip(answers, wanted, strict=True)]) for name in asked}
        return InferAnswer(
            model=served.name,
            version=str(served.version),
            request_id=query.request_id,
            outputs=tuple(OutputTensor.of(name, values[name]) for name in asked),
        )

    def _check(self, query: InferQuery, served: Served) -> int:
        """Hold names, datatypes, shapes and lengths against the model; how many images came. No value is read."""
        description = served.runner.model.description
        inputs, outputs = _inputs(description), _outputs(description)
        for name in query.inputs:
            if name not in inputs:
                raise RequestError(f"model {served.name!r} has no input {name!r}; it has: {', '.join(inputs)}")
        for name in query.outputs:
            if name not in outputs:
                raise RequestError(f"model {served.name!r} has no output {name!r}; it has: {', '.join(outputs)}")
        if len(query.inputs.keys() & {IMAGES, ENCODED}) != 1:
            came = "both" if IMAGES in query.inputs else "neither"
            raise RequestError(
                f"one of the inputs {IMAGES!r} ({inputs[IMAGES]}) and {ENCODED!r} ({inputs[ENCODED]}) was expected, {came} came"
            )
        for name, tensor in query.inputs.items():
            tensor.check(inputs[name], *_also_taken(inputs[name]))
        images, *size = query.inputs[IMAGES if IMAGES in query.inputs else ENCODED].shape
        if IMAGES in query.inputs and size[0] * size[1] > self._limits.max_pixels:
            raise ImageError(f"images of {size[0]:,} x {size[1]:,} pixels came: at most {self._limits.max_pixels:,} are taken")
        targets = query.inputs.get(TARGETS)
        if targets is not None and len(targets.shape) == 2 and targets.shape[0] not in (1, images):
            raise RequestError(
                f"input {TARGETS!r} of shape {list(targets.shape)} came with {images} images: [{images} or 1, K] was expected"
            )
        if targets is not None and targets.shape[-1] > self._max_maps:
            raise RequestError(f"input {TARGETS!r}: {targets.shape[-1]:,} classes came, at most {self._max_maps} a request: send several")
        return images

    def _wanted(self, query: InferQuery, served: Served, outputs: Sequence[str], images: int) -> list[Wanted]:
        """What is wanted of each image."""
        model = served.runner.model
        softmax, channels = (_single(query.inputs.get(name)) for name in (SOFTMAX, MAX_CHANNELS))
        targets = query.inputs.get(TARGETS)
        rows: list[list[int]] = [[FIRST_RANKED]] if targets is None else np.atleast_2d(targets.numbers()).tolist()
        fitted = [
            fit(
                model,
                served.name,
                targets=row,
                methods=tuple(name for name in outputs if name in model.description.methods),
                softmax=bool(softmax),
                max_channels=channels,
                max_maps=self._max_maps,
            )
            for row in rows
        ]
        return fitted * images if len(fitted) == 1 else fitted

    async def _rows(
        self, query: InferQuery, served: Served, wanted: Sequence[Wanted], places: Sequence[Place]
    ) -> list[Coroutine[None, None, Answer]]:
        """What is to be done for each image."""
        if IMAGES in query.inputs:
            images = (await self._pixels(query.inputs[IMAGES])).astype(np.uint8, copy=False)
            rows = [images[row : row + 1] for row in range(len(wanted))]
            return [self._run(served, row, one, place.leave) for row, one, place in zip(rows, wanted, places, strict=True)]
        batch = enumerate(query.inputs[ENCODED].elements())
        return [self._see_and_run(served, *image, one, place) for image, one, place in zip(batch, wanted, places, strict=True)]

    async def _pixels(self, tensor: InputTensor) -> npt.NDArray[np.integer[Any]]:
        # Millions of values one by one would hold up the event loop; raw ones are not even copied.
        return tensor.numbers() if tensor.raw is not None else (await self._image_workers.do(tensor.numbers)).value

    async def _run(self, served: Served, images: npt.NDArray[np.uint8], wanted: Wanted, on_turn: Callable[[], None]) -> Answer:
        with self._budget.lease() as run:
            await run.grow_to(served.runner.run_bytes(images.shape[1], images.shape[2]))
            return (await served.runner.submit(images, wanted, on_turn)).value

    async def _see_and_run(self, served: Served, row: int, data: bytes, wanted: Wanted, place: Place) -> Answer:
        try:
            _, ran = await self._image_inputs.see_and_submit(served.runner, data, wanted, False, place.leave)
        except ImageError as error:
            raise ImageError(f"input {ENCODED!r}, element {row}: {error}") from error
        return ran.value


async def _all_or_none(jobs: Sequence[Coroutine[None, None, T]]) -> list[T]:
    """Do all at once; where one fails, the others are cancelled, and its error is raised."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _inputs(description: Description) -> dict[str, TensorSpec]:
    size = description.preprocessing
    sides = (ANY_SIZE, ANY_SIZE) if description.dynamic_size else (size.height, size.width)
    specs = [
        TensorSpec(IMAGES, UINT8, (ANY_SIZE, *sides, 3)),
        TensorSpec(ENCODED, BYTES, (ANY_SIZE,)),
        TensorSpec(TARGETS, INT64, (ANY_SIZE, ANY_SIZE)),
    ]
    if description.maps:
        specs.append(TensorSpec(SOFTMAX, BOOL, (1,)))
    if any(map(is_score_cam, description.methods)):
        specs.append(TensorSpec(MAX_CHANNELS, INT64, (1,)))
    return {spec.name: spec for spec in specs}


def _also_taken(spec: TensorSpec) -> tuple[TensorSpec, ...]:
    """Other shapes of the same: a column of images, K classes for all images, and a single value as a matrix, as the graph has it."""
    shapes = {ENCODED: (ANY_SIZE, 1), TARGETS: (ANY_SIZE,), SOFTMAX: (1, 1), MAX_CHANNELS: (1, 1)}
    return (TensorSpec(spec.name, spec.datatype, shapes[spec.name]),) if spec.name in shapes else ()


def _outputs(description: Description) -> dict[str, TensorSpec]:
    classes = len(description.labels)
    specs = [
        TensorSpec(SCORES, FP32, (ANY_SIZE, classes)),
        TensorSpec(LOGITS, FP32, (ANY_SIZE, classes)),
        TensorSpec(CLASSES, INT64, (ANY_SIZE, ANY_SIZE)),
    ]
    for one in description.maps:
        sides = (ANY_SIZE, ANY_SIZE) if description.dynamic_size else (one.height, one.width)
        specs.append(TensorSpec(one.name, FP32, (ANY_SIZE, ANY_SIZE, *sides)))
    return {spec.name: spec for spec in specs}


def _single(tensor: InputTensor | None) -> int:
    """The value of a tensor that has one; 0 where none came."""
    return 0 if tensor is None else int(tensor.numbers().flat[0])


def _output(name: str, answer: Answer, wanted: Wanted) -> npt.NDArray[np.float32] | npt.NDArray[np.int64]:
    """One image's part of an output."""
    if name == CLASSES:
        return _ranked(answer, wanted.targets) if answer.classes is None else answer.classes
    return {SCORES: answer.scores, LOGITS: answer.logits, **answer.maps}[name]


def _ranked(answer: Answer, targets: Sequence[int]) -> npt.NDArray[np.int64]:
    """The classes, `[1, K]`, where no map was asked for and the graph did not tell them: -r is the r-th ranked."""
    order = np.argsort(-answer.logits[0], kind="stable")
    return np.array([[order[-target - 1] if target < 0 else target for target in targets]], dtype=np.int64)
