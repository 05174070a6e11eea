"""The gRPC edge of the server: messages in, messages out, errors as statuses. The logic is `service.classifier`'s."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc.aio
from google.rpc import status_pb2
from grpc_status import rpc_status

from contract.errors import TlcliError
from service import errors, wire
from service.answers import MapMethod, ModelInfo
from service.classifier import Classifier
from service.ordered import in_order
from service.pb.tlcli.v1 import classifier_pb2 as pb
from service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierServicer
from service.repository import Repository

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class ClassifierEdge(ClassifierServicer):
    """`tlcli.v1.Classifier`; see the .proto for what each call does."""

    def __init__(self, classifier: Classifier, repository: Repository, stream_in_flight: int) -> None:
        self._classifier = classifier
        self._repository = repository
        self._stream_in_flight = stream_in_flight

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:  # noqa: N802
        """One picture."""
        async with _refusals(context):
            return await self._classify(request)

    async def ClassifyStream(  # type: ignore[override]  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ClassifyRequest], context: Context
    ) -> None:
        """Many pictures on one call.

        Writes to the context instead of yielding, which gRPC takes as well: so the work of a stream whose client
        has left is cancelled here and now, and not when a generator is collected.
        """
        async with aclosing(in_order(request_iterator, self._classify_in_stream, self._stream_in_flight)) as answers:
            async for answer in answers:
                await context.write(answer)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:  # noqa: N802
        """Every model and version."""
        return pb.ListModelsResponse(models=[wire.write_status(status) for status in self._repository.statuses()])

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:  # noqa: N802
        """All that is known of one model."""
        async with _refusals(context):
            served = self._repository.find(request.model, request.version)
            description = served.runner.model.description
            return wire.write_info(
                ModelInfo(
                    model=served.name,
                    version=str(served.version),
                    device=served.runner.model.device,
                    labels=description.labels,
                    input_height=description.preprocessing.height,
                    input_width=description.preprocessing.width,
                    methods=tuple(MapMethod(one.method, one.layer, one.height, one.width) for one in description.maps),
                    description_json=description.to_json(),
                )
            )

    async def _classify(self, request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        return wire.write_response(await self._classifier.classify(wire.read_request(request)))

    async def _classify_in_stream(self, request: pb.ClassifyRequest) -> pb.ClassifyStreamResponse:
        try:
            return pb.ClassifyStreamResponse(request_id=request.request_id, response=await self._classify(request))
        except Exception as error:  # noqa: BLE001  # whatever it is, it is this picture's, and the stream goes on
            return pb.ClassifyStreamResponse(request_id=request.request_id, error=_status(error))


@asynccontextmanager
async def _refusals(context: Context) -> AsyncIterator[None]:
    """End the call with the status of what is raised inside."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # turned into a status, and logged if it is a fault of ours
        status = rpc_status.to_status(_status(error))
        await context.abort(status.code, status.details, status.trailing_metadata)


def _status(error: Exception) -> status_pb2.Status:
    if not isinstance(error, TlcliError):
        logger.error("a request failed by a fault of the server", exc_info=error)
    return errors.to_status(error)
