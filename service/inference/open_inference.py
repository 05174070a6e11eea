"""Open Inference Protocol handler that processes tensor queries from a repository, independent of protobuf and gRPC.

Each image of a request enters the model's queue separately. It can share a batch with images of other requests, and it takes one slot, like
an image that is sent alone.
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
from tlcli.service.execution.admission import Slot
from tlcli.service.execution.batching import MapRequest
from tlcli.service.inference.request_checks import check_map_request, time_limit
from tlcli.service.inference.resources import Resources
from tlcli.service.repository.model_repository import ServedVersion
from tlcli.service.telemetry.request_record import current_request
from tlcli.service.types.answer import ModelState
from tlcli.service.types.tensor import ANY_SIZE, BOOL, BYTES, FP32, INT64, UINT8, InputTensor, OutputTensor, TensorSpec

ENCODED, MAX_CHANNELS = "encoded", "max_channels"
"""Inputs that the graph itself does not have: encoded images, and the number of channels for a Score-CAM."""

PLATFORM = "onnxruntime_onnx"

STATES = {
    ModelState.READY: "READY",
    ModelState.LOADING: "LOADING",
    ModelState.FAILED: "UNAVAILABLE",
    ModelState.UNLOADED: "UNAVAILABLE",
}
"""Names of the model states in Triton's repository index."""

_UNSUPPORTED = ("shared_memory_region", "classification")
"""Unsupported tensor parameters that would change the meaning of a response. Other parameters may be ignored."""

T = TypeVar("T")


@dataclass(frozen=True)
class InferQuery:
    """One inference request.

    model: name of the model; may be empty if the server has only one.
    version: number or label; empty for the latest version.
    request_id: id that is repeated in the response.
    inputs: tensors by name.
    outputs: names of the outputs to compute; empty for scores and logits.
    """

    model: str
    version: str
    request_id: str
    inputs: Mapping[str, InputTensor]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, model: str, version: str, request_id: str, inputs: Sequence[InputTensor], outputs: Sequence[str]) -> InferQuery:
        """Create a query from tensors in the order of the request.

        Raises:
            RequestError: an input or output occurs more than once.
        """
        by_name: dict[str, InputTensor] = {}
        for tensor in inputs:
            if tensor.name in by_name:
                raise RequestError(f"input {tensor.name!r} occurs twice: send it once")
            by_name[tensor.name] = tensor
        if len(set(outputs)) < len(outputs):
            raise RequestError(f"an output is requested twice in {', '.join(outputs)}: request each output once")
        return cls(model, version, request_id, by_name, tuple(outputs))


@dataclass(frozen=True)
class InferAnswer:
    """Requested outputs, in the order of the request, with the model and version that computed them."""

    model: str
    version: str
    request_id: str
    outputs: tuple[OutputTensor, ...]


@dataclass(frozen=True)
class ModelTensors:
    """Description of a model's input and output tensors.

    versions: versions that are ready.
    """

    model: str
    versions: tuple[str, ...]
    labels: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def check_parameters(where: str, parameters: Container[str]) -> None:
    """Check the parameter names of an input or output tensor.

    Args:
        where: name of the tensor, shown in messages.
        parameters: parameter names in the request.

    Raises:
        RequestError: a parameter is not supported.
    """
    for name in _UNSUPPORTED:
        if name in parameters:
            raise RequestError(f"{where}: parameter {name!r} is not supported: remove it, and send tensors in the messages themselves")


class OpenInference:
    """Handler that processes Open Inference Protocol queries from the models of a repository."""

    def __init__(self, resources: Resources, limits: ImageLimits) -> None:
        """Create the handler.

        Args:
            resources: resources and limits shared with the other protocol.
            limits: limits on the size of images.
        """
        self._resources = resources
        self._limits = limits

    def is_ready(self, model: str, version: str) -> bool:
        """Return True if a model, or the given version of it, is ready. Return False if it is unknown."""
        try:
            self._resources.repository.find(model, version)
        except TlcliError:
            return False
        return True

    def describe(self, model: str, version: str) -> ModelTensors:
        """Describe a model's inputs and outputs.

        Raises:
            NotFoundError, ModelFileError, ServerError: see `Repository.find`.
        """
        served = self._resources.repository.find(model, version)
        description = served.runner.model.description
        statuses = self._resources.repository.statuses()
        return ModelTensors(
            model=served.name,
            versions=tuple(status.version for status in statuses if status.name == served.name and status.state is ModelState.READY),
            labels=description.labels,
            inputs=tuple(_inputs(description).values()),
            outputs=tuple(_outputs(description).values()),
        )

    async def infer(self, query: InferQuery) -> InferAnswer:
        """Process one query. If any of its images fails, the entire query fails.

        Raises:
            NotFoundError, ModelFileError, ServerError: see `Repository.find`.
            RequestError: the model does not accept a tensor, class, map or number in the query.
            OverloadedError: the model's queue has fewer free slots than the request has images.
            MemoryLimitError: not enough memory is free.
            ImageError: see `tlcli.contract.images.decoding.decode`.
            TimeLimitError: the query exceeded its time limit.
        """
        current_request().note_request(query.request_id, images=0)
        served = self._resources.repository.find(query.model, query.version)
        images = self._check(query, served)
        current_request().note_request(query.request_id, images)
        outputs = query.outputs or (SCORES, LOGITS)
        slots = served.queue(outputs).acquire_all(images)
        try:
            requests = self._map_requests(query, served, outputs, images)
            async with time_limit(self._resources.max_image_s * images):
                answers = await _all_or_none(await self._jobs(query, served, requests, slots))
        finally:
            for slot in slots:
                slot.release()
        rows = list(zip(answers, requests, strict=True))
        values = {name: np.concatenate([_output(name, answer, request) for answer, request in rows]) for name in outputs}
        return InferAnswer(
            model=served.name,
            version=str(served.version),
            request_id=query.request_id,
            outputs=tuple(OutputTensor.of(name, values[name]) for name in outputs),
        )

    def _check(self, query: InferQuery, served: ServedVersion) -> int:
        """Check names, datatypes, shapes and lengths against the model and return the number of images. Tensor values are not read."""
        description = served.runner.model.description
        inputs, outputs = _inputs(description), _outputs(description)
        for name in query.inputs:
            if name not in inputs:
                raise RequestError(f"model {served.name!r} has no input {name!r}; it has: {', '.join(inputs)}")
        for name in query.outputs:
            if name not in outputs:
                raise RequestError(f"model {served.name!r} has no output {name!r}; it has: {', '.join(outputs)}")
        if len(query.inputs.keys() & {IMAGES, ENCODED}) != 1:
            sent = "both" if IMAGES in query.inputs else "neither"
            raise RequestError(f"expected one of the inputs {IMAGES!r} ({inputs[IMAGES]}) and {ENCODED!r} ({inputs[ENCODED]}), got {sent}")
        for name, tensor in query.inputs.items():
            tensor.check(inputs[name], *_other_shapes(inputs[name]))
        images, *size = query.inputs[IMAGES if IMAGES in query.inputs else ENCODED].shape
        if IMAGES in query.inputs and size[0] * size[1] > self._limits.max_pixels:
            raise ImageError(
                f"images of {size[0]:,} x {size[1]:,} pixels are too large: at most {self._limits.max_pixels:,} pixels are accepted"
            )
        targets = query.inputs.get(TARGETS)
        if targets is not None and len(targets.shape) == 2 and targets.shape[0] not in (1, images):
            raise RequestError(
                f"input {TARGETS!r} has shape {list(targets.shape)} in a request with {images} images: expected [{images} or 1, K]"
            )
        if targets is not None and targets.shape[-1] > self._resources.max_maps:
            raise RequestError(
                f"input {TARGETS!r} has {targets.shape[-1]:,} classes: at most {self._resources.max_maps} are allowed (max_maps); send"
                " several requests"
            )
        return images

    def _map_requests(self, query: InferQuery, served: ServedVersion, outputs: Sequence[str], images: int) -> list[MapRequest]:
        """Return the map request of each image."""
        model = served.runner.model
        softmax, channels = (_single(query.inputs.get(name)) for name in (SOFTMAX, MAX_CHANNELS))
        targets = query.inputs.get(TARGETS)
        rows: list[list[int]] = [[FIRST_RANKED]] if targets is None else np.atleast_2d(targets.numbers()).tolist()
        requests = [
            check_map_request(
                model,
                served.name,
                targets=row,
                methods=tuple(name for name in outputs if name in model.description.methods),
                softmax=bool(softmax),
                max_channels=channels,
                max_maps=self._resources.max_maps,
            )
            for row in rows
        ]
        return requests * images if len(requests) == 1 else requests

    async def _jobs(
        self, query: InferQuery, served: ServedVersion, requests: Sequence[MapRequest], slots: Sequence[Slot]
    ) -> list[Coroutine[None, None, Answer]]:
        """Return one coroutine per image that computes its response."""
        if IMAGES in query.inputs:
            images = (await self._pixels(query.inputs[IMAGES])).astype(np.uint8, copy=False)
            rows = [images[row : row + 1] for row in range(len(requests))]
            return [self._run(served, row, request, slot.release) for row, request, slot in zip(rows, requests, slots, strict=True)]
        encoded = enumerate(query.inputs[ENCODED].elements())
        return [self._decode_and_run(served, *image, request, slot) for image, request, slot in zip(encoded, requests, slots, strict=True)]

    async def _pixels(self, tensor: InputTensor) -> npt.NDArray[np.integer[Any]]:
        # Reading millions of separate values would block the event loop, so it runs in a thread. Raw tensors are not copied.
        return tensor.numbers() if tensor.raw is not None else (await self._resources.image_workers.do(tensor.numbers)).value

    async def _run(
        self, served: ServedVersion, images: npt.NDArray[np.uint8], request: MapRequest, free_slot: Callable[[], None]
    ) -> Answer:
        with self._resources.budget.lease() as lease:
            await lease.grow_to(served.runner.run_bytes(images.shape[1], images.shape[2]))
            return (await served.runner.submit(images, request, free_slot)).value

    async def _decode_and_run(self, served: ServedVersion, row: int, data: bytes, request: MapRequest, slot: Slot) -> Answer:
        try:
            _, answer = await self._resources.image_pipeline.decode_and_submit(served.runner, data, request, False, slot.release)
        except ImageError as error:
            raise ImageError(f"input {ENCODED!r}, element {row}: {error}") from error
        return answer.value


async def _all_or_none(jobs: Sequence[Coroutine[None, None, T]]) -> list[T]:
    """Run all jobs concurrently and return their results. If a job fails, cancel the others and raise its error."""
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
    if description.maps and description.plain is None:
        specs.append(TensorSpec(SOFTMAX, BOOL, (1,)))
    if any(map(is_score_cam, description.methods)):
        specs.append(TensorSpec(MAX_CHANNELS, INT64, (1,)))
    return {spec.name: spec for spec in specs}


def _other_shapes(spec: TensorSpec) -> tuple[TensorSpec, ...]:
    """Return the alternative shapes that an input accepts.

    Encoded images may be a column, K classes may apply to all images, and a single value may be a matrix, as in the graph.
    """
    shapes = {ENCODED: (ANY_SIZE, 1), TARGETS: (ANY_SIZE,), SOFTMAX: (1, 1), MAX_CHANNELS: (1, 1)}
    return (TensorSpec(spec.name, spec.datatype, shapes[spec.name]),) if spec.name in shapes else ()


def _outputs(description: Description) -> dict[str, TensorSpec]:
    classes = len(description.labels)
    specs = [
        TensorSpec(SCORES, FP32, (ANY_SIZE, classes)),
        TensorSpec(LOGITS, FP32, (ANY_SIZE, classes)),
        TensorSpec(CLASSES, INT64, (ANY_SIZE, ANY_SIZE)),
    ]
    for entry in description.maps:
        sides = (ANY_SIZE, ANY_SIZE) if description.dynamic_size else (entry.height, entry.width)
        specs.append(TensorSpec(entry.name, FP32, (ANY_SIZE, ANY_SIZE, *sides)))
    return {spec.name: spec for spec in specs}


def _single(tensor: InputTensor | None) -> int:
    """Return the value of a tensor with one element; 0 if the tensor is None."""
    return 0 if tensor is None else int(tensor.numbers().flat[0])


def _output(name: str, answer: Answer, request: MapRequest) -> npt.NDArray[np.float32] | npt.NDArray[np.int64]:
    """Return one image's row of an output."""
    if name == CLASSES:
        return _ranked(answer, request.targets) if answer.classes is None else answer.classes
    return {SCORES: answer.scores, LOGITS: answer.logits, **answer.maps}[name]


def _ranked(answer: Answer, targets: Sequence[int]) -> npt.NDArray[np.int64]:
    """Resolve targets to class ids `[1, K]` for a run without maps, in which the graph returns none. -r is the r-th ranked class."""
    order = np.argsort(-answer.logits[0], kind="stable")
    return np.array([[order[-target - 1] if target < 0 else target for target in targets]], dtype=np.int64)
