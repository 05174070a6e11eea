"""Ray Serve application. Its replicas contain a server's components and handle requests from Ray's gRPC proxies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc
import ray
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2_grpc
from ray import serve
from ray.serve.grpc_util import RayServegRPCContext, gRPCInputStream

from tlcli.contract.model.onnx_model import resolve_device
from tlcli.contract.process.malloc import return_freed_memory
from tlcli.ray.app_settings import fit_to, read_args
from tlcli.ray.dispatch import Dispatch, Handlers
from tlcli.ray.ray_context import CallAborted, RayContext
from tlcli.service.inference.components import Components
from tlcli.service.protocol.rpc_methods import SERVICES, path_of
from tlcli.service.rpc.grpc_server import handlers, interceptors
from tlcli.service.rpc.health_servicer import HealthServicer
from tlcli.service.security.tokens import reloading_tokens
from tlcli.service.settings.server_settings import ServerSettings
from tlcli.service.telemetry.logs import configure_logging

logger = logging.getLogger(__name__)


class Serialized:
    """Response that is already serialized. Ray calls only the `SerializeToString` method of a response."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def SerializeToString(self) -> bytes:  # noqa: N802  # protobuf's name
        """Return the bytes of the message."""
        return self._data


class Replica:
    """Replica of the application, one of several identical processes.

    It has one method for each call of both protocols, named after the call, and `Check` of `grpc.health.v1`. Batches are formed only
    inside the replica, as in `tlcli serve`.
    """

    async def __init__(self, settings: ServerSettings) -> None:  # type: ignore[misc]  # Ray awaits it
        """Create the replica: load and warm up the models.

        Raises:
            TlcliError: see `tlcli.service.server.Server`.
        """
        configure_logging(settings.log_format)
        return_freed_memory()
        settings = fit_to(settings, ray.get_runtime_context().get_assigned_resources().get("CPU", 0))
        self._serving = False
        self._health = HealthServicer()
        self._parts = Components.of(settings, on_change=self._announce, is_serving=lambda: self._serving)
        logger.info("device: %s (requested: %s)", resolve_device(settings.device), settings.device)
        self._parts.repository.discover()
        registry = Handlers()
        registry.add_generic_rpc_handlers(handlers(self._parts))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, registry)
        self._dispatch = Dispatch(registry, interceptors(self._parts, reloading_tokens(settings.tokens_file)))
        await self._parts.repository.load()
        self._serving = True
        await self._announce()
        self._following = asyncio.create_task(self._parts.control.follow())

    async def __del__(self) -> None:
        """Close the models. Ray awaits this method once all in-flight requests have finished."""
        self._following.cancel()
        await self._parts.close()

    async def _announce(self) -> None:
        await self._health.announce(self._serving, self._parts.repository.serving())

    async def _answer(self, path: str, request: bytes, context: RayServegRPCContext) -> Serialized:
        """Handle a unary call and return its response.

        A rejected call returns an empty response, because Ray sends the status in its context back only together with a response.
        """
        call = RayContext(context)
        with suppress(CallAborted):
            await self._require_size(request, call)
            return Serialized(await self._dispatch.answer(path, request, call, call.invocation_metadata()))
        return Serialized(b"")

    async def _answer_stream(
        self, path: str, requests: gRPCInputStream[bytes], context: RayServegRPCContext
    ) -> AsyncGenerator[Serialized, None]:
        """Handle a streaming call and yield its responses. A rejected stream ends with an empty response; see `_answer`."""
        answers: asyncio.Queue[Serialized | Exception | None] = asyncio.Queue(1)

        async def write(message: Message) -> None:
            await answers.put(Serialized(message.SerializeToString()))

        async def work() -> None:
            call = RayContext(context, write)
            failure: Exception | None = None
            try:
                await self._dispatch.answer_stream(path, requests, call, call.invocation_metadata())
            except CallAborted:
                await answers.put(Serialized(b""))
            except Exception as error:  # noqa: BLE001  # raised again by the reader of the queue
                failure = error
            await answers.put(failure)

        task = asyncio.create_task(work())
        try:
            while isinstance(answer := await answers.get(), Serialized):
                yield answer
            if answer is not None:
                raise answer
        finally:
            task.cancel()

    async def _require_size(self, request: bytes, call: RayContext) -> None:
        limit = self._parts.max_message_bytes
        if len(request) > limit:
            await call.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"Received message larger than max ({len(request)} vs. {limit})")


def _unary(path: str) -> Callable[..., Awaitable[Serialized]]:
    async def call(self: Replica, request: bytes, grpc_context: RayServegRPCContext) -> Serialized:
        return await self._answer(path, request, grpc_context)

    return call


def _stream(path: str) -> Callable[..., AsyncGenerator[Serialized, None]]:
    async def call(self: Replica, requests: gRPCInputStream[bytes], grpc_context: RayServegRPCContext) -> AsyncGenerator[Serialized, None]:
        async for answer in self._answer_stream(path, requests, grpc_context):
            yield answer

    return call


def _add_methods(replica: type[Replica]) -> None:
    """Add a method for each call to the class, because Ray looks up methods by the name of the call."""
    for method in (method for service in SERVICES for method in service.methods):
        setattr(replica, method.name, (_stream if method.client_streaming else _unary)(path_of(method)))
    setattr(replica, "Check", _unary(f"/{health.SERVICE_NAME}/Check"))  # noqa: B010  # like the calls above


_add_methods(Replica)


def build(args: dict[str, Any]) -> serve.Application:
    """Build the application from the `args` of a Serve config, which are settings of `tlcli serve`.

    A replica receives at most twice as many requests as fit in a batch, so that one batch forms while another runs. Further requests wait
    in the proxies until a replica is free or a new one has started.

    Raises:
        SettingsError: see `tlcli.ray.app_settings.read_args`.
    """
    settings = read_args(args)
    deployment = serve.deployment(
        max_ongoing_requests=2 * settings.max_batch_size,
        max_queued_requests=settings.max_queue_size,
        graceful_shutdown_timeout_s=settings.grace_s,
    )
    return deployment(Replica).bind(settings)
