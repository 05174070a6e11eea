"""The Python client for programs with an event loop; the same questions and answers as `tlcli.service.client.sync_client.Client`."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypedDict, Unpack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tlcli.contract.errors import OverloadedError, ServerError, TlcliError
from tlcli.service.client.connection import Connection, How
from tlcli.service.client.request_stream import ImageInput, is_pixels, name_image, with_image
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub
from tlcli.service.protocol import codec
from tlcli.service.system.ordered_stream import in_order
from tlcli.service.types.answer import Classification, ModelInfo, ModelStatus, StreamAnswer
from tlcli.service.types.query import MapFormat, Query, map_query

if TYPE_CHECKING:
    from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierAsyncStub

_POLL_S = 0.05


class Asking(TypedDict, total=False):
    """What is asked of an image; see `tlcli.service.client.sync_client.Client.classify`."""

    model: str
    version: str
    top_k: int
    method: str | None
    classes: Sequence[int]
    map_format: MapFormat
    softmax: bool
    max_channels: int


class AsyncClient:
    """A connection to one server, made at the first call, for one event loop.

    Example:
        async with AsyncClient(port=8001) as client:
            answers = await asyncio.gather(*(client.classify(path) for path in paths))
    """

    def __init__(self, host: str = "127.0.0.1", port: int | None = None, **how: Unpack[How]) -> None:
        """To be made where the event loop runs.

        Args:
            host, port: where the server listens, see `tlcli.service.client.sync_client.Client`.
            how: `tls`, `tls_ca`, `tls_certificate`, `tls_key`, `token`, `retries` and `metadata`; see `connection.Connection`.

        Raises:
            SettingsError: see there.
        """
        self._connection = Connection(host, port, **how)
        self._metadata = self._connection.metadata
        self._channel = self._connection.aio_channel()
        self._classifier: ClassifierAsyncStub = ClassifierStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._input_sizes: dict[tuple[str, str], tuple[int, int]] = {}

    @property
    def address(self) -> str:
        """`host:port` of the server."""
        return self._connection.address

    async def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def classify(
        self, image: ImageInput, *, request_id: str = "", timeout_s: float | None = 30.0, **asking: Unpack[Asking]
    ) -> Classification:
        """Ask about one image. Cancelled, the server leaves off.

        Args:
            image, request_id, timeout_s, asking: see `tlcli.service.client.sync_client.Client.classify`. A path is read in a thread.

        Raises:
            TlcliError: see there.
        """
        size = await self._input_size(asking.get("model", ""), asking.get("version", "")) if is_pixels(image) else (0, 0)
        request = await asyncio.to_thread(_request, image, request_id, asking, size)
        try:
            return codec.read_response(await self._patiently(request, timeout_s))
        except TlcliError as error:
            named = name_image(error, image)
            if named is error:
                raise
            raise named from error

    async def classify_all(
        self,
        images: Iterable[ImageInput] | AsyncIterable[ImageInput],
        *,
        in_flight: int = 8,
        timeout_s: float | None = 30.0,
        **asking: Unpack[Asking],
    ) -> AsyncGenerator[StreamAnswer, None]:
        """Ask about many images, several at a time.

        Args:
            images: taken as they are needed.
            in_flight: how many are asked about at a time.
            timeout_s: for each.
            asking: see `tlcli.service.client.sync_client.Client.classify`.

        Yields:
            An answer for each image, in their order; `request_id` counts them from 0. An image that fails is answered with its error.

        Raises:
            ServerError: no server answers.
            Exception: what `images` itself raises.
        """

        async def ask(numbered: tuple[int, ImageInput]) -> StreamAnswer:
            request_id = str(numbered[0])
            try:
                return StreamAnswer(request_id, await self.classify(numbered[1], request_id=request_id, timeout_s=timeout_s, **asking))
            except ServerError:
                raise
            except TlcliError as error:
                return StreamAnswer(request_id, error)

        async for answer in in_order(_numbered(images), ask, in_flight):
            yield answer

    async def list_models(self, timeout_s: float = 30.0) -> tuple[ModelStatus, ...]:
        """Every version of every model on the server, the broken ones with the reason.

        Raises:
            ServerError: no server answers, or not in time.
        """
        try:
            answer = await self._classifier.ListModels(pb.ListModelsRequest(), timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._connection.error(error) from error
        return tuple(codec.read_status(status) for status in answer.models)

    async def get_model(self, model: str = "", version: str = "", timeout_s: float = 30.0) -> ModelInfo:
        """All that is known of one model.

        Raises:
            NotFoundError: no such model or version.
            ModelFileError: it is there and broken.
            ServerError: no server answers, or not in time.
        """
        request = pb.GetModelRequest(model=model, version=version)
        try:
            return codec.read_info(await self._classifier.GetModel(request, timeout=timeout_s, metadata=self._metadata))
        except grpc.RpcError as error:
            raise self._connection.error(error) from error

    async def _input_size(self, model: str, version: str) -> tuple[int, int]:
        size = self._input_sizes.get((model, version))
        if size is None:
            info = await self.get_model(model, version)
            size = self._input_sizes[model, version] = (info.input_height, info.input_width)
        return size

    async def is_ready(self, model: str = "", timeout_s: float = 5.0) -> bool:
        """Does the server, or this model of it, say SERVING? A server that cannot be reached is not ready."""
        with suppress(grpc.RpcError):
            answer = await self._health.Check(health_pb2.HealthCheckRequest(service=model), timeout=timeout_s, metadata=self._metadata)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
        return False

    async def wait_until_ready(self, timeout_s: float = 60.0, model: str = "") -> None:
        """Return when the server, or this model of it, says SERVING.

        Raises:
            ServerError: it did not within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while not await self.is_ready(model, timeout_s=max(_POLL_S, deadline - time.monotonic())):
            if time.monotonic() >= deadline:
                raise ServerError(await asyncio.to_thread(self._connection.why_not_ready, timeout_s, model))
            await asyncio.sleep(_POLL_S)

    async def _patiently(self, request: pb.ClassifyRequest, timeout_s: float | None) -> pb.ClassifyResponse:
        end = math.inf if timeout_s is None else time.monotonic() + timeout_s
        for attempt in itertools.count(1):
            left_s = end - time.monotonic()
            try:
                return await self._classifier.Classify(request, timeout=None if timeout_s is None else left_s, metadata=self._metadata)
            except grpc.RpcError as refused:
                error = await asyncio.to_thread(self._connection.error, refused)  # it may try a handshake to learn the reason
                pause_s = self._connection.pause_s(error, attempt, left_s) if isinstance(error, OverloadedError) else None
                if pause_s is None:
                    raise error from refused
            await asyncio.sleep(pause_s)
        raise AssertionError("unreachable")


def _request(image: ImageInput, request_id: str, asking: Asking, input_size: tuple[int, int]) -> pb.ClassifyRequest:
    about_map = partial(map_query, asking.get("method"), asking.get("classes", ()), asking.get("map_format", "raw"))
    wanted = about_map(asking.get("softmax", False), asking.get("max_channels", 0))
    query = Query(
        model=asking.get("model", ""),
        version=asking.get("version", ""),
        top_k=asking.get("top_k", 0),
        map=wanted,
        request_id=request_id,
    )
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
