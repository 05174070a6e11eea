"""The gRPC edge of the Open Inference Protocol: messages in, messages out, errors as statuses. The logic is `open_inference`'s."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import grpc

from tlcli.contract.errors import RequestError
from tlcli.service.decoding.memory_budget import MemoryBudget
from tlcli.service.inference.open_inference import PLATFORM, STATES, InferAnswer, InferQuery, OpenInference, check_parameters
from tlcli.service.pb.inference import open_inference_pb2 as pb
from tlcli.service.protocol.rpc_methods import OPEN_INFERENCE, Context, handler
from tlcli.service.repository.model_control import ModelControl
from tlcli.service.repository.model_repository import Repository
from tlcli.service.rpc.error_handling import message_bytes, parse, refusals
from tlcli.service.types.answer import ModelState
from tlcli.service.types.tensor import BOOL, BYTES, INT64, UINT8, InputTensor, TensorSpec, check_shape

_EXTENSIONS = ("model_repository",)


class OpenInferenceEdge:
    """`inference.GRPCInferenceService`; see the .proto for what each call does.

    Its methods take bytes, as those of `tlcli.service.rpc.classifier_servicer.ClassifierEdge` do.
    """

    def __init__(
        self,
        open_inference: OpenInference,
        repository: Repository,
        control: ModelControl,
        is_serving: Callable[[], bool],
        budget: MemoryBudget,
    ) -> None:
        """is_serving: whether the server as a whole takes requests, as health tells it."""
        self._open_inference = open_inference
        self._repository = repository
        self._control = control
        self._is_serving = is_serving
        self._budget = budget

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """The service's calls, for a server that has not started."""
        return handler(
            OPEN_INFERENCE,
            {
                "ServerLive": self.server_live,
                "ServerReady": self.server_ready,
                "ModelReady": self.model_ready,
                "ServerMetadata": self.server_metadata,
                "ModelMetadata": self.model_metadata,
                "ModelInfer": self.model_infer,
                "RepositoryIndex": self.repository_index,
                "RepositoryModelLoad": self.repository_model_load,
                "RepositoryModelUnload": self.repository_model_unload,
            },
        )

    async def server_live(self, request: bytes, context: Context) -> pb.ServerLiveResponse:
        """That it answers says it."""
        async with refusals(context):
            parse(pb.ServerLiveRequest, request)
            return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: bytes, context: Context) -> pb.ServerReadyResponse:
        """Whether requests are taken."""
        async with refusals(context):
            parse(pb.ServerReadyRequest, request)
            return pb.ServerReadyResponse(ready=self._is_serving())

    async def model_ready(self, request: bytes, context: Context) -> pb.ModelReadyResponse:
        """Whether a model answers."""
        async with refusals(context):
            asked = parse(pb.ModelReadyRequest, request)
            return pb.ModelReadyResponse(ready=self._open_inference.is_ready(asked.name, asked.version))

    async def server_metadata(self, request: bytes, context: Context) -> pb.ServerMetadataResponse:
        """What this server is."""
        async with refusals(context):
            parse(pb.ServerMetadataRequest, request)
            return pb.ServerMetadataResponse(name="tlcli", version=metadata.version("tlcli"), extensions=_EXTENSIONS)

    async def model_metadata(self, request: bytes, context: Context) -> pb.ModelMetadataResponse:
        """What a model takes and gives."""
        async with refusals(context):
            asked = parse(pb.ModelMetadataRequest, request)
            found = self._open_inference.describe(asked.name, asked.version)
            return pb.ModelMetadataResponse(
                name=found.model,
                versions=found.versions,
                platform=PLATFORM,
                inputs=_write_specs(found.inputs),
                outputs=_write_specs(found.outputs),
                properties={"labels": json.dumps(found.labels)},
            )

    async def model_infer(self, request: bytes, context: Context) -> pb.ModelInferResponse:
        """Images in, scores and maps out."""
        async with refusals(context):
            with self._budget.bodies.lease() as lease:
                await lease.grow_to(message_bytes(request))
                return _write_answer(await self._open_inference.infer(_read_query(parse(pb.ModelInferRequest, request))))

    async def repository_index(self, request: bytes, context: Context) -> pb.RepositoryIndexResponse:
        """Every model and version."""
        async with refusals(context):
            asked = parse(pb.RepositoryIndexRequest, request)
            if asked.repository_name:
                raise RequestError(f"repository_name {asked.repository_name!r}: this server has one repository: leave the field empty")
            index = pb.RepositoryIndexResponse.ModelIndex
            return pb.RepositoryIndexResponse(
                models=[
                    index(name=one.name, version=one.version, state=STATES[one.state], reason=one.reason)
                    for one in self._repository.statuses()
                    if one.state is ModelState.READY or not asked.ready
                ]
            )

    async def repository_model_load(self, request: bytes, context: Context) -> pb.RepositoryModelLoadResponse:
        """Take what is in a model's folder now."""
        async with refusals(context):
            asked = parse(pb.RepositoryModelLoadRequest, request)
            await self._control.load(_named(asked), asked.parameters)
            return pb.RepositoryModelLoadResponse()

    async def repository_model_unload(self, request: bytes, context: Context) -> pb.RepositoryModelUnloadResponse:
        """Serve a model no longer."""
        async with refusals(context):
            asked = parse(pb.RepositoryModelUnloadRequest, request)
            await self._control.unload(_named(asked), asked.parameters)
            return pb.RepositoryModelUnloadResponse()


def _named(request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest) -> str:
    """The model's name, which KServe's clients number as Triton's number the repository's."""
    return request.model_name or request.repository_name


_CONTENTS = {BOOL: "bool_contents", UINT8: "uint_contents", INT64: "int64_contents", BYTES: "bytes_contents"}
"""The field that holds a datatype's values one by one, for those that models take."""


def _read_query(message: pb.ModelInferRequest) -> InferQuery:
    """Raises: RequestError: values that cannot be told apart, and what of the protocol is not offered."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise RequestError(
            f"{len(raw)} raw_input_contents came with {len(message.inputs)} inputs: one for each was expected, or `contents` in each"
        )
    inputs = []
    for number, tensor in enumerate(message.inputs):
        check_parameters(f"input {tensor.name!r}", tensor.parameters)
        inputs.append(_read_input(tensor, raw[number] if raw else None))
    for asked in message.outputs:
        check_parameters(f"output {asked.name!r}", asked.parameters)
    return InferQuery.of(message.model_name, message.model_version, message.id, inputs, [asked.name for asked in message.outputs])


def _read_input(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> InputTensor:
    check_shape(f"input {tensor.name!r}", tensor.shape)
    filled = {field.name: values for field, values in tensor.contents.ListFields()}
    if raw is not None and filled:
        raise RequestError(f"input {tensor.name!r} has `contents` beside raw_input_contents: send one or the other")
    field = _CONTENTS.get(tensor.datatype)
    if field is not None and not filled.keys() <= {field}:
        raise RequestError(f"input {tensor.name!r}: values of {tensor.datatype} go into {field}; {', '.join(filled)} came")
    return InputTensor(tensor.name, tensor.datatype, tuple(tensor.shape), raw, () if field is None else filled.get(field, ()))


def _write_answer(answer: InferAnswer) -> pb.ModelInferResponse:
    """Raw, always: what clients of Triton's read."""
    tensor = pb.ModelInferResponse.InferOutputTensor
    return pb.ModelInferResponse(
        model_name=answer.model,
        model_version=answer.version,
        id=answer.request_id,
        outputs=[tensor(name=one.name, datatype=one.datatype, shape=one.shape) for one in answer.outputs],
        raw_output_contents=[one.raw for one in answer.outputs],
    )


def _write_specs(specs: Sequence[TensorSpec]) -> list[pb.ModelMetadataResponse.TensorMetadata]:
    return [pb.ModelMetadataResponse.TensorMetadata(name=one.name, datatype=one.datatype, shape=one.shape) for one in specs]
