"""Routes of the Open Inference Protocol with Triton's extensions for model repositories and binary tensor data.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tlcli.contract.errors import RequestError
from tlcli.service.inference.open_inference import PLATFORM, STATES, OpenInference
from tlcli.service.repository.model_control import ModelControl
from tlcli.service.repository.model_repository import Repository
from tlcli.service.rest.endpoint import Endpoint
from tlcli.service.rest.json_fields import optional, read_object
from tlcli.service.rest.json_tensors import EncodedAnswer, read_infer, write_infer
from tlcli.service.rest.responses import JSON, json_response
from tlcli.service.rest.schemas import (
    ControlRequest,
    IndexEntry,
    InferRequest,
    InferResponse,
    Live,
    ModelMetadata,
    ModelProperties,
    Ready,
    RepositoryIndex,
    RepositoryIndexRequest,
    ServerMetadata,
    TensorMetadata,
)
from tlcli.service.system.thread_pool import Workers
from tlcli.service.types.answer import ModelState
from tlcli.service.types.tensor import TensorSpec

JSON_BYTES = "Inference-Header-Content-Length"
"""Header that holds the length of the JSON in a body when tensors follow it."""

_EXTENSIONS = ["model_repository", "binary_tensor_data"]
_BINARY = "application/octet-stream"
_SMALL_BODY = 64 * 1024
"""Maximum size in bytes of bodies that are read and written in the event loop. Larger bodies are handled in a thread."""

_MAX_CONTROL_BYTES = 64 * 1024
_MODEL_ERRORS = (400, 404, 409)


class OpenInferenceEndpoints:
    """Endpoints of the Open Inference Protocol and their descriptions for the OpenAPI document."""

    def __init__(
        self,
        open_inference: OpenInference,
        repository: Repository,
        control: ModelControl,
        workers: Workers,
        is_serving: Callable[[], bool],
        max_bytes: int,
    ) -> None:
        """Create the endpoints.

        Args:
            open_inference: handler for inference requests.
            repository: repository that holds the models.
            control: controller that loads and unloads models.
            workers: threads that read and write large bodies.
            is_serving: returns True while the server as a whole accepts requests, as reported by the health endpoints.
            max_bytes: maximum size of an inference request in bytes.
        """
        self._open_inference = open_inference
        self._repository = repository
        self._control = control
        self._workers = workers
        self._is_serving = is_serving
        self._max_bytes = max_bytes

    def endpoints(self) -> list[Endpoint]:
        """Return the routes and their descriptions."""
        model = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
        ready = [f"{path}/ready" for path in model]
        repository, named = "/v2/repository", "/v2/repository/models/{name}"
        return [
            Endpoint("server_metadata", "GET", ("/v2",), self.server_metadata, "Describe the server", {JSON: ServerMetadata}),
            Endpoint("server_live", "GET", ("/v2/health/live",), self.server_live, "Report liveness of the server", {JSON: Live}),
            Endpoint(
                "server_ready",
                "GET",
                ("/v2/health/ready",),
                self.server_ready,
                "Report readiness of the server: 400 if it is not ready",
                {JSON: Ready},
                refusals=(400,),
            ),
            Endpoint(
                "model_metadata",
                "GET",
                model,
                self.model_metadata,
                "Describe a model's inputs and outputs",
                {JSON: ModelMetadata},
                refusals=_MODEL_ERRORS,
            ),
            Endpoint(
                "model_ready",
                "GET",
                ready,
                self.model_ready,
                "Report readiness of a model: 400 if it is not ready",
                {JSON: Ready},
                refusals=(400,),
            ),
            Endpoint(
                "model_infer",
                "POST",
                [f"{path}/infer" for path in model],
                self.model_infer,
                f"Compute scores and maps of images; tensors are in JSON, or bytes after it, whose length is in {JSON_BYTES}",
                {JSON: InferResponse, _BINARY: None},
                takes={JSON: InferRequest, _BINARY: None},
                max_bytes=self._max_bytes,
                refusals=(*_MODEL_ERRORS, 413, 415, 429, 504),
            ),
            Endpoint(
                "repository_index",
                "POST",
                (f"{repository}/index",),
                self.repository_index,
                "List every model and version",
                {JSON: RepositoryIndex},
                takes={JSON: RepositoryIndexRequest},
                max_bytes=_MAX_CONTROL_BYTES,
                refusals=(400, 413, 415),
            ),
            Endpoint(
                "repository_model_load",
                "POST",
                (f"{named}/load",),
                self.repository_model_load,
                "Load the current content of a model's folder",
                takes={JSON: ControlRequest},
                max_bytes=_MAX_CONTROL_BYTES,
                refusals=(*_MODEL_ERRORS, 413, 415),
            ),
            Endpoint(
                "repository_model_unload",
                "POST",
                (f"{named}/unload",),
                self.repository_model_unload,
                "Stop serving a model",
                takes={JSON: ControlRequest},
                max_bytes=_MAX_CONTROL_BYTES,
                refusals=(*_MODEL_ERRORS, 413, 415),
            ),
        ]

    async def server_metadata(self, request: Request, body: bytes) -> Response:
        """Describe the server."""
        return json_response(ServerMetadata(name="tlcli", version=metadata.version("tlcli"), extensions=_EXTENSIONS))

    async def server_live(self, request: Request, body: bytes) -> Response:
        """Report that the server is live."""
        return json_response(Live(live=True))

    async def server_ready(self, request: Request, body: bytes) -> Response:
        """Report whether the server accepts requests."""
        return _ready(self._is_serving())

    async def model_ready(self, request: Request, body: bytes) -> Response:
        """Report whether a model is ready."""
        return _ready(self._open_inference.is_ready(*_model(request)))

    async def model_metadata(self, request: Request, body: bytes) -> Response:
        """Describe a model's inputs and outputs."""
        tensors = self._open_inference.describe(*_model(request))
        return json_response(
            ModelMetadata(
                name=tensors.model,
                versions=list(tensors.versions),
                platform=PLATFORM,
                inputs=_write_specs(tensors.inputs),
                outputs=_write_specs(tensors.outputs),
                properties=ModelProperties(labels=list(tensors.labels)),
            )
        )

    async def model_infer(self, request: Request, body: bytes) -> Response:
        """Compute scores and maps for images."""
        length, (model, version) = _json_bytes(request), _model(request)
        if len(body) <= _SMALL_BODY:
            call = read_infer(body, length, model, version)
        else:
            call = (await self._workers.do(read_infer, body, length, model, version)).value
        answer = await self._open_inference.infer(call.query)
        if sum(len(output.raw) for output in answer.outputs) <= _SMALL_BODY:
            return _response(write_infer(answer, call))
        return _response((await self._workers.do(write_infer, answer, call)).value)

    async def repository_index(self, request: Request, body: bytes) -> Response:
        """List every model and version."""
        only_ready = optional("the request", read_object(body or b"{}"), "ready", False)
        return json_response(
            RepositoryIndex(
                [
                    IndexEntry(name=status.name, version=status.version, state=STATES[status.state], reason=status.reason)
                    for status in self._repository.statuses()
                    if status.state is ModelState.READY or not only_ready
                ]
            )
        )

    async def repository_model_load(self, request: Request, body: bytes) -> Response:
        """Load the current content of a model's folder."""
        await self._control.load(request.path_params["name"], _parameters(body))
        return Response()

    async def repository_model_unload(self, request: Request, body: bytes) -> Response:
        """Stop serving a model."""
        await self._control.unload(request.path_params["name"], _parameters(body))
        return Response()


def _parameters(body: bytes) -> dict[str, Any]:
    """Return the parameters of a load or unload request."""
    none: dict[str, Any] = {}
    return optional("the request", read_object(body or b"{}"), "parameters", none)


def _model(request: Request) -> tuple[str, str]:
    return request.path_params["name"], request.path_params.get("version", "")


def _ready(ready: bool) -> Response:
    """Create a readiness response.

    In the protocol, a status from 400 to 499 means false. Triton and KServe clients check only the status.
    """
    return json_response(Ready(ready=ready), 200 if ready else 400)


def _json_bytes(request: Request) -> int | None:
    """Return the length of the JSON from the request's header; None without the header.

    Raises:
        RequestError: the header is not a number.
    """
    text = request.headers.get(JSON_BYTES)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise RequestError(f"{JSON_BYTES} is {text!r:.60}: expected the number of bytes of JSON")
    return int(text)


def _response(answer: EncodedAnswer) -> Response:
    if answer.json_bytes is None:
        return Response(answer.body, media_type=JSON)
    return Response(answer.body, media_type=_BINARY, headers={JSON_BYTES: str(answer.json_bytes)})


def _write_specs(specs: Iterable[TensorSpec]) -> list[TensorMetadata]:
    return [TensorMetadata(name=spec.name, datatype=spec.datatype, shape=list(spec.shape)) for spec in specs]
