"""Asynchronous Python client with the same requests and responses as `tlcli.service.client.sync_client.Client`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tlcli.contract.errors import OverloadedError, ServerError, TlcliError
from tlcli.service.client.classify_options import ClassifyOptions, build_query, names_labels
from tlcli.service.client.connection import Connection, ConnectionOptions
from tlcli.service.client.request_stream import ImageInput, is_pixels, naming, with_image
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub
from tlcli.service.protocol import codec
from tlcli.service.system.ordered_stream import in_order
from tlcli.service.types.answer import Classification, ModelInfo, ModelStatus, StreamAnswer
from tlcli.service.types.query import Query

if TYPE_CHECKING:
    from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierAsyncStub

_POLL_S = 0.05


class AsyncClient:
    """Asynchronous client for one server, bound to one event loop. The connection opens on the first call.

    Example:
        async with AsyncClient(port=8001) as client:
            answers = await asyncio.gather(*(client.classify(path) for path in paths))
    """

    def __init__(self, host: str = "127.0.0.1", port: int | None = None, **connection: Unpack[ConnectionOptions]) -> None:
        """Create a client; the connection opens on the first call. Must be called while the event loop is running.

        Args:
            host, port, connection: see `tlcli.service.client.sync_client.Client`.

        Raises:
            SettingsError: the address or an option is invalid; see `tlcli.service.client.connection.Connection`.
        """
        self._connection = Connection(host, port, **connection)
        self._metadata = self._connection.metadata
        self._channel = self._connection.aio_channel()
        self._classifier: ClassifierAsyncStub = ClassifierStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._input_sizes: dict[tuple[str, str], tuple[int, int]] = {}

    @property
    def address(self) -> str:
        """Address of the server as `host:port`."""
        return self._connection.address

    async def close(self) -> None:
        """Close the connection and cancel in-flight calls."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def classify(
        self, image: ImageInput, *, request_id: str = "", timeout_s: float | None = 30.0, **options: Unpack[ClassifyOptions]
    ) -> Classification:
        """Classify one image. Cancelling the call cancels the request on the server.

        Args:
            image, request_id, timeout_s, options: see `tlcli.service.client.sync_client.Client.classify`. Image files are read in a
                thread.

        Raises:
            TlcliError: see `tlcli.service.client.sync_client.Client.classify`.
        """
        return await self._classify(image, await self._query(options), request_id, timeout_s)

    async def classify_all(
        self,
        images: Iterable[ImageInput] | AsyncIterable[ImageInput],
        *,
        in_flight: int = 8,
        timeout_s: float | None = 30.0,
        **options: Unpack[ClassifyOptions],
    ) -> AsyncGenerator[StreamAnswer, None]:
        """Classify many images concurrently.

        Args:
            images: images to classify, read from the iterable as they are needed.
            in_flight: maximum number of in-flight requests.
            timeout_s: time limit for each image in seconds; None for no limit.
            options: see `tlcli.service.client.sync_client.Client.classify`.

        Yields:
            One response per image, in order. Its `request_id` is the position of the image, counted from 0. If an image fails, its response
            contains the error.

        Raises:
            ServerError: the server cannot be reached or does not respond in time.
            Exception: any exception raised by `images`.
        """
        query = await self._query(options)

        async def ask(numbered: tuple[int, ImageInput]) -> StreamAnswer:
            request_id = str(numbered[0])
            try:
                return StreamAnswer(request_id, await self._classify(numbered[1], query, request_id, timeout_s))
            except ServerError:
                raise
            except TlcliError as error:
                return StreamAnswer(request_id, error)

        async for answer in in_order(_numbered(images), ask, in_flight):
            yield answer

    async def _query(self, options: ClassifyOptions) -> Query:
        labels: tuple[str, ...] = ()
        if names_labels(options):
            labels = (await self.get_model(options.get("model", ""), options.get("version", ""))).labels
        return build_query(options, lambda: labels)

    async def _classify(self, image: ImageInput, query: Query, request_id: str, timeout_s: float | None) -> Classification:
        size = await self._input_size(query.model, query.version) if is_pixels(image) else (0, 0)
        request = await asyncio.to_thread(_request, replace(query, request_id=request_id), image, size)
        backoff = self._connection.backoff(timeout_s)
        with naming(image):
            while True:
                try:
                    async with self._translated():
                        return codec.read_response(
                            await self._classifier.Classify(request, timeout=backoff.left_s(), metadata=self._metadata)
                        )
                except OverloadedError as error:
                    pause_s = backoff.pause_s(error)
                await asyncio.sleep(pause_s)

    async def list_models(self, timeout_s: float = 30.0) -> tuple[ModelStatus, ...]:
        """Return the status of every version of every model on the server. The status of a broken version includes the reason.

        Raises:
            ServerError: the server cannot be reached or does not respond in time.
        """
        async with self._translated():
            answer = await self._classifier.ListModels(pb.ListModelsRequest(), timeout=timeout_s, metadata=self._metadata)
        return tuple(codec.read_status(status) for status in answer.models)

    async def get_model(self, model: str = "", version: str = "", timeout_s: float = 30.0) -> ModelInfo:
        """Return the properties of one model.

        Raises:
            NotFoundError: the model or version does not exist.
            ModelFileError: the model exists but is broken.
            ServerError: the server cannot be reached or does not respond in time.
        """
        request = pb.GetModelRequest(model=model, version=version)
        async with self._translated():
            return codec.read_info(await self._classifier.GetModel(request, timeout=timeout_s, metadata=self._metadata))

    async def _input_size(self, model: str, version: str) -> tuple[int, int]:
        size = self._input_sizes.get((model, version))
        if size is None:
            info = await self.get_model(model, version)
            size = self._input_sizes[model, version] = (info.input_height, info.input_width)
        return size

    async def is_ready(self, model: str = "", timeout_s: float = 5.0) -> bool:
        """Return True if the server, or the given model, reports SERVING. Return False if the server cannot be reached."""
        with suppress(grpc.RpcError):
            answer = await self._health.Check(health_pb2.HealthCheckRequest(service=model), timeout=timeout_s, metadata=self._metadata)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
        return False

    async def wait_until_ready(self, timeout_s: float = 60.0, model: str = "") -> None:
        """Wait until the server, or the given model, reports SERVING.

        Raises:
            ServerError: the server or model was not ready within `timeout_s` seconds.
        """
        deadline = time.monotonic() + timeout_s
        while not await self.is_ready(model, timeout_s=max(_POLL_S, deadline - time.monotonic())):
            if time.monotonic() >= deadline:
                raise ServerError(await asyncio.to_thread(self._connection.why_not_ready, timeout_s, model))
            await asyncio.sleep(_POLL_S)

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        try:
            yield
        except grpc.RpcError as error:  # in a thread, because a handshake may be needed to find the reason
            raise await asyncio.to_thread(self._connection.error, error) from error


def _request(query: Query, image: ImageInput, input_size: tuple[int, int]) -> pb.ClassifyRequest:
    return codec.write_request(with_image(query, image, lambda: input_size))


async def _numbered(images: Iterable[ImageInput] | AsyncIterable[ImageInput]) -> AsyncGenerator[tuple[int, ImageInput], None]:
    number = 0
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield number, image
            number += 1
    else:
        for image in images:
            yield number, image
            number += 1
