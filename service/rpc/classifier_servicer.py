"""The gRPC edge of the server: messages in, messages out, errors as statuses. The logic is `tlcli.service.inference.classifier`'s."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from tlcli.service.decoding.memory_budget import MemoryBudget
from tlcli.service.inference.classifier import Classifier
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.protocol import codec
from tlcli.service.protocol.rpc_methods import CLASSIFIER, Context, handler
from tlcli.service.repository.model_repository import Repository
from tlcli.service.rpc.error_handling import message_bytes, parse, refusals
from tlcli.service.rpc.idle_streams import taken, until_idle
from tlcli.service.system.ordered_stream import in_order
from tlcli.service.telemetry.failed_request import record_error
from tlcli.service.telemetry.request_interceptor import next_stream_request
from tlcli.service.types.answer import MapMethod, ModelInfo


class ClassifierEdge:
    """`tlcli.v1.Classifier`; see the .proto for what each call does.

    Its methods take bytes and parse them here, because gRPC answers bytes that do not parse with UNKNOWN, the name
    of a Python class and a traceback in the log, as if the server were at fault.
    """

    def __init__(
        self, classifier: Classifier, repository: Repository, stream_in_flight: int, stream_idle_s: float, budget: MemoryBudget
    ) -> None:
        """stream_in_flight: images of one stream worked on at a time. stream_idle_s: how long nothing may move on it; 0: any time."""
        self._classifier = classifier
        self._repository = repository
        self._stream_in_flight = stream_in_flight
        self._stream_idle_s = stream_idle_s
        self._budget = budget

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """The service's calls, for a server that has not started."""
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
        """One image."""
        async with refusals(context):
            with self._budget.bodies.lease() as lease:
                await lease.grow_to(message_bytes(request))
                return await self._classify(parse(pb.ClassifyRequest, request))

    async def classify_stream(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Many images on one call.

        Writes to the context instead of yielding, which gRPC takes as well: so the work of a stream whose client
        has left is cancelled here and now, and not when a generator is collected.
        """
        working = 0

        async def work(data: bytes) -> pb.ClassifyStreamResponse:
            nonlocal working
            working += 1
            try:
                return await self._classify_in_stream(data)
            finally:
                working -= 1

        coming = until_idle(aiter(requests), self._stream_idle_s, lambda: working > 0)
        async with refusals(context), aclosing(in_order(coming, work, self._stream_in_flight)) as answers:
            async for answer in answers:
                await taken(context.write(answer), self._stream_idle_s)

    async def list_models(self, request: bytes, context: Context) -> pb.ListModelsResponse:
        """Every model and version."""
        async with refusals(context):
            parse(pb.ListModelsRequest, request)
            return pb.ListModelsResponse(models=[codec.write_status(status) for status in self._repository.statuses()])

    async def get_model(self, request: bytes, context: Context) -> pb.GetModelResponse:
        """All that is known of one model."""
        async with refusals(context):
            wanted = parse(pb.GetModelRequest, request)
            served = self._repository.find(wanted.model, wanted.version)
            description = served.runner.model.description
            return codec.write_info(
                ModelInfo(
                    model=served.name,
                    version=str(served.version),
                    device=served.runner.model.device,
                    labels=description.labels,
                    input_height=description.preprocessing.height,
                    input_width=description.preprocessing.width,
                    methods=tuple(MapMethod(one.name, one.layer, one.height, one.width) for one in description.maps),
                    description_json=description.to_json(),
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
        except Exception as error:  # noqa: BLE001  # whatever it is, it is this image's, and the stream goes on
            return pb.ClassifyStreamResponse(request_id=request_id, error=record_error(error))
