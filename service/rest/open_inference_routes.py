"""The REST half of the Open Inference Protocol, with Triton's extensions for repositories and binary data. The logic is elsewhere.

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
from tlcli.service.rest.endpoint import Endpoint, of_json, schema
from tlcli.service.rest.error_responses import JSON
from tlcli.service.rest.json_fields import optional, read_object
from tlcli.service.rest.json_tensors import Written, read_infer, write_infer
from tlcli.service.system.thread_pool import Workers
from tlcli.service.types.answer import ModelState
from tlcli.service.types.tensor import TensorSpec

JSON_BYTES = "Inference-Header-Content-Length"
"""The header that says how much of a body is JSON, where tensors follow it."""

_EXTENSIONS = ("model_repository", "binary_tensor_data")
_BINARY = "application/octet-stream"
_SMALL_BODY = 64 * 1024
"""Read and written in the event loop; larger ones in a thread."""

_MAX_CONTROL_BYTES = 64 * 1024
_OF_MODELS = (400, 404, 409)


class OpenInferenceEndpoints:
    """The protocol's requests; see the OpenAPI document for what each does."""

    def __init__(
        self,
        open_inference: OpenInference,
        repository: Repository,
        control: ModelControl,
        workers: Workers,
        is_serving: Callable[[], bool],
        max_bytes: int,
    ) -> None:
        """
        Args:
            workers: that read and write large bodies.
            is_serving: whether the server as a whole takes requests, as health tells it.
            max_bytes: of a request that infers.
        """
        self._open_inference = open_inference
        self._repository = repository
        self._control = control
        self._workers = workers
        self._is_serving = is_serving
        self._max_bytes = max_bytes

    def endpoints(self) -> list[Endpoint]:
        """As they are routed and described."""
        model = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
        ready = [f"{path}/ready" for path in model]
        repository, named = "/v2/repository", "/v2/repository/models/{name}"
        infer = {JSON: schema("InferRequest"), _BINARY: {}}
        told = {JSON: schema("Ready")}
        control = {JSON: {"type": "object"}}
        return [
            Endpoint("server_metadata", "GET", ("/v2",), self.server_metadata, "What this server is", {JSON: schema("ServerMetadata")}),
            Endpoint("server_live", "GET", ("/v2/health/live",), self.server_live, "Whether it runs", {JSON: schema("Live")}),
            Endpoint(
                "server_ready",
                "GET",
                ("/v2/health/ready",),
                self.server_ready,
                "Whether it takes requests: 400 if not",
                told,
                refusals=(400,),
            ),
            Endpoint(
                "model_metadata",
                "GET",
                model,
                self.model_metadata,
                "What a model takes and gives",
                {JSON: schema("ModelMetadata")},
                refusals=_OF_MODELS,
            ),
            Endpoint("model_ready", "GET", ready, self.model_ready, "Whether a model answers: 400 if not", told, refusals=(400,)),
            Endpoint(
                "model_infer",
                "POST",
                [f"{path}/infer" for path in model],
                self.model_infer,
                f"Images in, scores and maps out; tensors in JSON, or as bytes behind it, whose length {JSON_BYTES} tells",
                {JSON: schema("InferResponse"), _BINARY: {}},
                takes=infer,
                max_bytes=self._max_bytes,
                refusals=(*_OF_MODELS, 413, 415, 429, 504),
            ),
            Endpoint(
                "repository_index",
                "POST",
                (f"{repository}/index",),
                self.repository_index,
                "Every model and version",
                {JSON: schema("RepositoryIndex")},
                takes={JSON: schema("RepositoryIndexRequest")},
                max_bytes=_MAX_CONTROL_BYTES,
                refusals=(400, 413, 415),
            ),
            Endpoint(
                "repository_model_load",
                "POST",
                (f"{named}/load",),
                self.repository_model_load,
                "Take what is in a model's folder now",
                takes=control,
                max_bytes=_MAX_CONTROL_BYTES,
                refusals=(*_OF_MODELS, 413, 415),
            ),
            Endpoint(
                "repository_model_unload",
                "POST",
                (f"{named}/unload",),
                self.repository_model_unload,
                "Serve a model no longer",
                takes=control,
                max_bytes=_MAX_CONTROL_BYTES,
                refusals=(*_OF_MODELS, 413, 415),
            ),
        ]

    async def server_metadata(self, request: Request, body: bytes) -> Response:
        """What this server is."""
        return of_json({"name": "tlcli", "version": metadata.version("tlcli"), "extensions": _EXTENSIONS})

    async def server_live(self, request: Request, body: bytes) -> Response:
        """That it answers says it."""
        return of_json({"live": True})

    async def server_ready(self, request: Request, body: bytes) -> Response:
        """Whether requests are taken."""
        return _ready(self._is_serving())

    async def model_ready(self, request: Request, body: bytes) -> Response:
        """Whether a model answers."""
        return _ready(self._open_inference.is_ready(*_model(request)))

    async def model_metadata(self, request: Request, body: bytes) -> Response:
        """What a model takes and gives."""
        found = self._open_inference.describe(*_model(request))
        return of_json(
            {
                "name": found.model,
                "versions": found.versions,
                "platform": PLATFORM,
                "inputs": _write_specs(found.inputs),
                "outputs": _write_specs(found.outputs),
                "properties": {"labels": found.labels},
            }
        )

    async def model_infer(self, request: Request, body: bytes) -> Response:
        """Images in, scores and maps out."""
        length, (model, version) = _json_bytes(request), _model(request)
        if len(body) <= _SMALL_BODY:
            call = read_infer(body, length, model, version)
        else:
            call = (await self._workers.do(read_infer, body, length, model, version)).value
        answer = await self._open_inference.infer(call.query)
        if sum(len(one.raw) for one in answer.outputs) <= _SMALL_BODY:
            return _written(write_infer(answer, call))
        return _written((await self._workers.do(write_infer, answer, call)).value)

    async def repository_index(self, request: Request, body: bytes) -> Response:
        """Every model and version."""
        only_ready = optional("the request", read_object(body or b"{}"), "ready", False)
        return of_json(
            [
                {"name": one.name, "version": one.version, "state": STATES[one.state], "reason": one.reason}
                for one in self._repository.statuses()
                if one.state is ModelState.READY or not only_ready
            ]
        )

    async def repository_model_load(self, request: Request, body: bytes) -> Response:
        """Take what is in a model's folder now."""
        await self._control.load(request.path_params["name"], _parameters(body))
        return Response()

    async def repository_model_unload(self, request: Request, body: bytes) -> Response:
        """Serve a model no longer."""
        await self._control.unload(request.path_params["name"], _parameters(body))
        return Response()


def _parameters(body: bytes) -> dict[str, Any]:
    """Return the parameters of a load or an unload."""
    none: dict[str, Any] = {}
    return optional("the request", read_object(body or b"{}"), "parameters", none)


def _model(request: Request) -> tuple[str, str]:
    return request.path_params["name"], request.path_params.get("version", "")


def _ready(ready: bool) -> Response:
    """The protocol has false as a status of 400 to 499; Triton and KServe's clients look at nothing else."""
    return of_json({"ready": ready}, 200 if ready else 400)


def _json_bytes(request: Request) -> int | None:
    """Raises: RequestError: the header is no number."""
    text = request.headers.get(JSON_BYTES)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise RequestError(f"{JSON_BYTES} is {text!r:.60}: the number of bytes of JSON was expected")
    return int(text)


def _written(written: Written) -> Response:
    if written.json_bytes is None:
        return Response(written.body, media_type=JSON)
    return Response(written.body, media_type=_BINARY, headers={JSON_BYTES: str(written.json_bytes)})


def _write_specs(specs: Iterable[TensorSpec]) -> list[dict[str, Any]]:
    return [{"name": one.name, "datatype": one.datatype, "shape": one.shape} for one in specs]
