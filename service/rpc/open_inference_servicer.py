"""Servicer for the Open Inference Protocol.

It converts messages and errors and delegates to `tlcli.service.inference.open_inference`.
"""

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
from tlcli.service.protocol.message_parsing import message_bytes, parse
from tlcli.service.protocol.rpc_methods import OPEN_INFERENCE, Context, handler
from tlcli.service.repository.model_control import ModelControl
from tlcli.service.repository.model_repository import Repository
from tlcli.service.rpc.request_interceptor import abort_on_error
from tlcli.service.types.answer import ModelState
from tlcli.service.types.tensor import BOOL, BYTES, INT64, UINT8, InputTensor, TensorSpec, check_shape

_EXTENSIONS = ("model_repository",)


class OpenInferenceServicer:
    """Servicer for `inference.GRPCInferenceService`. Its methods are described in the .proto file.

    The methods take bytes for the same reason as those of `tlcli.service.rpc.classifier_servicer.ClassifierServicer`.
    """

    def __init__(
        self,
        open_inference: OpenInference,
        repository: Repository,
        control: ModelControl,
        is_serving: Callable[[], bool],
        budget: MemoryBudget,
    ) -> None:
        """Create the servicer.

        Args:
            open_inference: handler for inference requests.
            repository: repository that holds the models.
            control: controller that loads and unloads models.
            is_serving: returns True while the server as a whole accepts requests, as reported by the health service.
            budget: memory budget shared by all requests.
        """
        self._open_inference = open_inference
        self._repository = repository
        self._control = control
        self._is_serving = is_serving
        self._budget = budget

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Return the service's handler, which must be added to a server before it starts."""
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
        """Report that the server is live."""
        async with abort_on_error(context):
            parse(pb.ServerLiveRequest, request)
            return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: bytes, context: Context) -> pb.ServerReadyResponse:
        """Report whether the server accepts requests."""
        async with abort_on_error(context):
            parse(pb.ServerReadyRequest, request)
            return pb.ServerReadyResponse(ready=self._is_serving())

    async def model_ready(self, request: bytes, context: Context) -> pb.ModelReadyResponse:
        """Report whether a model is ready."""
        async with abort_on_error(context):
            message = parse(pb.ModelReadyRequest, request)
            return pb.ModelReadyResponse(ready=self._open_inference.is_ready(message.name, message.version))

    async def server_metadata(self, request: bytes, context: Context) -> pb.ServerMetadataResponse:
        """Describe the server."""
        async with abort_on_error(context):
            parse(pb.ServerMetadataRequest, request)
            return pb.ServerMetadataResponse(name="tlcli", version=metadata.version("tlcli"), extensions=_EXTENSIONS)

    async def model_metadata(self, request: bytes, context: Context) -> pb.ModelMetadataResponse:
        """Describe a model's inputs and outputs."""
        async with abort_on_error(context):
            message = parse(pb.ModelMetadataRequest, request)
            tensors = self._open_inference.describe(message.name, message.version)
            return pb.ModelMetadataResponse(
                name=tensors.model,
                versions=tensors.versions,
                platform=PLATFORM,
                inputs=_write_specs(tensors.inputs),
                outputs=_write_specs(tensors.outputs),
                properties={"labels": json.dumps(tensors.labels)},
            )

    async def model_infer(self, request: bytes, context: Context) -> pb.ModelInferResponse:
        """Compute scores and maps for images."""
        async with abort_on_error(context):
            with self._budget.bodies.lease() as lease:
                await lease.grow_to(message_bytes(request))
                return _write_answer(await self._open_inference.infer(_read_query(parse(pb.ModelInferRequest, request))))

    async def repository_index(self, request: bytes, context: Context) -> pb.RepositoryIndexResponse:
        """List every model and version."""
        async with abort_on_error(context):
            message = parse(pb.RepositoryIndexRequest, request)
            if message.repository_name:
                raise RequestError(f"repository_name {message.repository_name!r}: this server has one repository: leave the field empty")
            index = pb.RepositoryIndexResponse.ModelIndex
            return pb.RepositoryIndexResponse(
                models=[
                    index(name=status.name, version=status.version, state=STATES[status.state], reason=status.reason)
                    for status in self._repository.statuses()
                    if status.state is ModelState.READY or not message.ready
                ]
            )

    async def repository_model_load(self, request: bytes, context: Context) -> pb.RepositoryModelLoadResponse:
        """Load the current content of a model's folder."""
        async with abort_on_error(context):
            message = parse(pb.RepositoryModelLoadRequest, request)
            await self._control.load(_model_name(message), message.parameters)
            return pb.RepositoryModelLoadResponse()

    async def repository_model_unload(self, request: bytes, context: Context) -> pb.RepositoryModelUnloadResponse:
        """Stop serving a model."""
        async with abort_on_error(context):
            message = parse(pb.RepositoryModelUnloadRequest, request)
            await self._control.unload(_model_name(message), message.parameters)
            return pb.RepositoryModelUnloadResponse()


def _model_name(message: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest) -> str:
    """Return the model name of a load or unload request.

    KServe clients send the model name under the field number that Triton's .proto assigns to `repository_name`.
    """
    return message.model_name or message.repository_name


_CONTENTS = {BOOL: "bool_contents", UINT8: "uint_contents", INT64: "int64_contents", BYTES: "bytes_contents"}
"""Field that holds a tensor's separate values, for each input datatype."""


def _read_query(message: pb.ModelInferRequest) -> InferQuery:
    """Convert a protobuf message to a query.

    Raises:
        RequestError: values are ambiguous, or the message uses an unsupported part of the protocol.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise RequestError(
            f"{len(raw)} raw_input_contents for {len(message.inputs)} inputs: expected one for each input, or `contents` in each"
        )
    inputs = []
    for number, tensor in enumerate(message.inputs):
        check_parameters(f"input {tensor.name!r}", tensor.parameters)
        inputs.append(_read_input(tensor, raw[number] if raw else None))
    for output in message.outputs:
        check_parameters(f"output {output.name!r}", output.parameters)
    return InferQuery.of(message.model_name, message.model_version, message.id, inputs, [output.name for output in message.outputs])


def _read_input(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> InputTensor:
    check_shape(f"input {tensor.name!r}", tensor.shape)
    filled = {field.name: values for field, values in tensor.contents.ListFields()}
    if raw is not None and filled:
        raise RequestError(f"input {tensor.name!r} has both `contents` and raw_input_contents: send one of them")
    field = _CONTENTS.get(tensor.datatype)
    if field is not None and not filled.keys() <= {field}:
        raise RequestError(f"input {tensor.name!r}: expected values of {tensor.datatype} in {field}, got {', '.join(filled)}")
    return InputTensor(tensor.name, tensor.datatype, tuple(tensor.shape), raw, () if field is None else filled.get(field, ()))


def _write_answer(answer: InferAnswer) -> pb.ModelInferResponse:
    """Convert a response to a protobuf message. Tensors are always raw, because Triton clients expect this format."""
    tensor = pb.ModelInferResponse.InferOutputTensor
    return pb.ModelInferResponse(
        model_name=answer.model,
        model_version=answer.version,
        id=answer.request_id,
        outputs=[tensor(name=output.name, datatype=output.datatype, shape=output.shape) for output in answer.outputs],
        raw_output_contents=[output.raw for output in answer.outputs],
    )


def _write_specs(specs: Sequence[TensorSpec]) -> list[pb.ModelMetadataResponse.TensorMetadata]:
    return [pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape) for spec in specs]
