"""Servicer for `tlcli.v1.Classifier` that converts messages and errors and delegates to `tlcli.service.inference.classifier`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from tlcli.service.decoding.memory_budget import MemoryBudget
from tlcli.service.inference.classifier import Classifier
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.protocol import codec
from tlcli.service.protocol.message_parsing import message_bytes, parse
from tlcli.service.protocol.rpc_methods import CLASSIFIER, Context, handler
from tlcli.service.repository.model_repository import Repository
from tlcli.service.rpc.idle_streams import until_idle, write_or_time_out
from tlcli.service.rpc.request_interceptor import abort_on_error, next_stream_request
from tlcli.service.system.ordered_stream import in_order
from tlcli.service.telemetry.failed_request import record_error
from tlcli.service.types.answer import MapMethod, ModelInfo


class ClassifierServicer:
    """Servicer for `tlcli.v1.Classifier`. Its methods are described in the .proto file.

    The methods take bytes and parse them. If gRPC parsed them, it would respond to invalid bytes with UNKNOWN and the name of a Python
    class, and log a traceback, as if the server were at fault.
    """

    def __init__(
        self, classifier: Classifier, repository: Repository, stream_in_flight: int, stream_idle_s: float, budget: MemoryBudget
    ) -> None:
        """Create the servicer.

        Args:
            classifier: classifier for the requests.
            repository: repository that holds the models.
            stream_in_flight: maximum number of in-flight images per stream.
            stream_idle_s: idle time in seconds after which a stream ends; 0 for no limit.
            budget: memory budget shared by all requests.
        """
        self._classifier = classifier
        self._repository = repository
        self._stream_in_flight = stream_in_flight
        self._stream_idle_s = stream_idle_s
        self._budget = budget

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Return the service's handler, which must be added to a server before it starts."""
        return handler(
            CLASSIFIER,
            {
                "Classify": self.classify,
                "ClassifyStream": self.classify_stream,
                "ListModels": self.list_models,
                "GetModel": self.get_model,
            },
        )

    async def classify(self, request: bytes, context: Context) -> pb.ClassifyResponse:
        """Classify one image."""
        async with abort_on_error(context):
            with self._budget.bodies.lease() as lease:
                await lease.grow_to(message_bytes(request))
                return await self._classify(parse(pb.ClassifyRequest, request))

    async def classify_stream(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Classify the images of a stream.

        The method writes to the context instead of yielding, which gRPC also supports. When the client leaves, the stream's work is then
        cancelled immediately instead of when a generator is garbage-collected.
        """
        working = 0

        async def work(data: bytes) -> pb.ClassifyStreamResponse:
            nonlocal working
            working += 1
            try:
                return await self._classify_in_stream(data)
            finally:
                working -= 1

        incoming = until_idle(aiter(requests), self._stream_idle_s, lambda: working > 0)
        async with abort_on_error(context), aclosing(in_order(incoming, work, self._stream_in_flight)) as answers:
            async for answer in answers:
                await write_or_time_out(context.write(answer), self._stream_idle_s)

    async def list_models(self, request: bytes, context: Context) -> pb.ListModelsResponse:
        """List every model and version."""
        async with abort_on_error(context):
            parse(pb.ListModelsRequest, request)
            return pb.ListModelsResponse(models=[codec.write_status(status) for status in self._repository.statuses()])

    async def get_model(self, request: bytes, context: Context) -> pb.GetModelResponse:
        """Describe one model."""
        async with abort_on_error(context):
            message = parse(pb.GetModelRequest, request)
            served = self._repository.find(message.model, message.version)
            description = served.runner.model.description
            return codec.write_info(
                ModelInfo(
                    model=served.name,
                    version=str(served.version),
                    device=served.runner.model.device,
                    labels=description.labels,
                    input_height=description.preprocessing.height,
                    input_width=description.preprocessing.width,
                    methods=tuple(MapMethod(entry.name, entry.layer, entry.height, entry.width) for entry in description.maps),
                    description_json=description.to_json(),
                    task=description.task,
                    thresholds=description.thresholds,
                )
            )

    async def _classify(self, request: pb.ClassifyRequest, patient: bool = False) -> pb.ClassifyResponse:
        return codec.write_response(await self._classifier.classify(codec.read_request(request), patient))

    async def _classify_in_stream(self, data: bytes) -> pb.ClassifyStreamResponse:
        with next_stream_request() as observed:
            observed.received_bytes = len(data)
            answer = await self._answer_in_stream(data)
            observed.sent_bytes = answer.ByteSize()
            return answer

    async def _answer_in_stream(self, data: bytes) -> pb.ClassifyStreamResponse:
        request_id = ""
        try:
            with self._budget.bodies.lease() as lease:
                await lease.grow_to(message_bytes(data))
                request = parse(pb.ClassifyRequest, data)
                request_id = request.request_id
                return pb.ClassifyStreamResponse(request_id=request_id, response=await self._classify(request, patient=True))
        except Exception as error:  # noqa: BLE001  # every error belongs to this image, and the stream continues
            return pb.ClassifyStreamResponse(request_id=request_id, error=record_error(error))
