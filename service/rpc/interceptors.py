"""Interceptors that reject calls at shutdown and calls without a valid token, and that bound the memory of messages."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health
from grpc_status import rpc_status

from tlcli.contract.errors import ServerError
from tlcli.contract.process.malloc import trim_freed_memory
from tlcli.service.protocol.error_status import RETRY_AFTER_MS, to_status
from tlcli.service.protocol.rpc_methods import SERVICES, path_of
from tlcli.service.rpc.request_interceptor import echoed_metadata
from tlcli.service.security.tokens import Token, refusal
from tlcli.service.system.reloading_file import ReloadingFile

logger = logging.getLogger(__name__)

_OPEN_METHODS = frozenset({f"/{health.SERVICE_NAME}/Check", f"/{health.SERVICE_NAME}/Watch"})
"""Methods that need no token, because load balancers and container managers check health without one. `List` is not included, because it
would reveal the names of models."""

_DRAIN_MARGIN_S = 0.05

_OWN_METHODS = {path_of(method) for service in SERVICES for method in service.methods}
_MAX_FOREIGN_BYTES = 64 * 1024

_UNCHECKED = 8
"""Number of calls that may be read concurrently without checking memory."""

_CHECK_S = 0.05
_TRIM_S = 0.5
_PAGE_BYTES = 4096
_STATM = Path("/proc/self/statm")
_REMEDY = "send smaller messages, fewer at a time, or raise the server's max_memory_bytes"


class DrainInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Interceptor that passes every call until `drain` is called. Afterwards, it passes health checks only.

    gRPC cancels requests that reach a server while it closes its connections, and clients may not treat a cancellation as a reason to
    retry. Therefore, new requests are rejected for a while beforehand with UNAVAILABLE and a retry delay that ends after the close.
    Clients with a retry policy (gRFC A6) then connect to the server that has taken over.
    """

    def __init__(self) -> None:
        self._closes_at: float | None = None

    def drain(self, closes_in_s: float) -> None:
        """Reject new requests from now on.

        Args:
            closes_in_s: seconds until the server closes its connections.
        """
        self._closes_at = time.monotonic() + closes_in_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the call's handler, or a handler that rejects the call while draining."""
        if self._closes_at is None or handler_call_details.method.startswith(f"/{health.SERVICE_NAME}/"):
            return await continuation(handler_call_details)
        retry_s = max(0.0, self._closes_at - time.monotonic()) + _DRAIN_MARGIN_S
        status = rpc_status.to_status(to_status(ServerError("the server is shutting down: retry to reach its replacement")))

        async def reject(requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            metadata = (*status.trailing_metadata, (RETRY_AFTER_MS, str(round(1000 * retry_s))), *echoed_metadata())
            await context.abort(status.code, status.details, metadata)

        return grpc.stream_stream_rpc_method_handler(reject)  # works for every kind of call: it reads no request and writes no response


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Interceptor that rejects calls without a valid token with UNAUTHENTICATED, before any message is read."""

    def __init__(self, tokens: ReloadingFile[tuple[Token, ...]]) -> None:
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the call's handler, or a handler that rejects the call if it has no valid token."""
        if handler_call_details.method in _OPEN_METHODS:
            return await continuation(handler_call_details)
        values = [value for key, value in handler_call_details.invocation_metadata or () if key == "authorization"]
        reason = refusal([value if isinstance(value, bytes) else value.encode() for value in values], self._tokens.get())
        if not reason:
            return await continuation(handler_call_details)

        async def reject(requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)

        return grpc.stream_stream_rpc_method_handler(reject)  # works for every kind of call: it reads no request and writes no response


class SmallMessageInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Interceptor that replaces messages of more than 64 KiB to foreign services (health and reflection) with empty messages.

    Without it, gRPC would parse them in the event loop. A message of this size must hold unknown fields, which these services ignore.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the call's handler, with a bounded deserializer for foreign methods."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler_call_details.method in _OWN_METHODS or handler.request_deserializer is None:
            return handler  # type: ignore[no-any-return]
        deserialize = handler.request_deserializer
        bounded = handler._replace(request_deserializer=lambda data: deserialize(data if len(data) <= _MAX_FOREIGN_BYTES else b""))
        return bounded  # type: ignore[no-any-return]  # noqa: RET504


class UnreadMessageInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Interceptor that ends the calls whose messages have been arriving longest while the process uses too much memory.

    gRPC buffers a message until it is complete and does not report its length. A client that sends all but the last byte of a message
    therefore takes memory that no request accounts for. For this reason every call, even a unary one, is handled as a stream, whose reads
    can be counted. If the memory of the process is unknown (on systems other than Linux), no call is ended.
    """

    def __init__(self, limit_bytes: int) -> None:
        """Create the interceptor.

        Args:
            limit_bytes: allowed growth of the process in bytes since `begin` or, without it, since the first call.
        """
        self._limit_bytes = limit_bytes
        self._first_bytes: int | None = None
        self._reading: dict[Any, None] = {}  # contexts, longest-running first
        self._watch: asyncio.Task[None] | None = None
        self._trim: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Reset the baseline for memory growth.

        Called after models are loaded or unloaded, because their memory does not belong to messages.
        """
        self._first_bytes = _process_bytes()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return a handler for the call that counts its reads."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return handler  # type: ignore[return-value]
        if self._first_bytes is None:
            self.begin()
        kinds = {"request_deserializer": handler.request_deserializer, "response_serializer": handler.response_serializer}
        if handler.unary_unary is not None:
            return grpc.stream_unary_rpc_method_handler(self._unary(handler.unary_unary), **kinds)
        behaviour = self._unary_stream(handler.unary_stream) if handler.unary_stream is not None else self._stream(handler.stream_stream)
        return grpc.stream_stream_rpc_method_handler(behaviour, **kinds)

    def _unary(self, behaviour: Any) -> Any:
        async def read(_: object, context: Any) -> Any:
            return await behaviour(await self._only_message(context), context)  # a variable would keep the message alive

        return read

    def _unary_stream(self, behaviour: Any) -> Any:
        async def read(_: object, context: Any) -> None:
            await _write_all(behaviour(await self._only_message(context), context), context)

        return read

    def _stream(self, behaviour: Any) -> Any:
        async def read(_: object, context: Any) -> None:
            await _write_all(behaviour(self._counted(context), context), context)

        return read

    async def _only_message(self, context: Any) -> Any:
        try:
            return await self._next(context)
        except StopAsyncIteration:
            pass
        try:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call ended before its message was complete: send one message")
        except grpc.aio.InternalError:
            raise asyncio.CancelledError from None  # the client has left and cannot receive the status

    async def _counted(self, context: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield await self._next(context)
        except StopAsyncIteration:
            return

    async def _next(self, context: Any) -> Any:
        """Read a message. While the message arrives, the call may be ended to free memory.

        Raises:
            StopAsyncIteration: there are no more messages.
            AbortError: the call was ended, or the bytes are not a valid message.
        """
        self._reading[context] = None
        if len(self._reading) > _UNCHECKED and (self._watch is None or self._watch.done()):
            self._watch = asyncio.create_task(self._check_memory())
        try:
            message = await context.read()  # gRPC's iterator would keep the message alive as long as the call
        except BaseException as error:
            self._trim_soon()
            if isinstance(error, DecodeError):  # in foreign services; gRPC would return UNKNOWN, and log a traceback
                await context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT, "the request is not a valid message of this method: use the .proto of this server"
                )
            raise
        finally:
            self._reading.pop(context, None)
        if message is grpc.aio.EOF:  # type: ignore[attr-defined]  # missing from the stubs
            self._trim_soon()
            raise StopAsyncIteration
        return message

    async def _check_memory(self) -> None:
        """Check the memory of the process periodically while many calls are being read, and end calls above the limit."""
        while len(self._reading) > _UNCHECKED:
            used, first = _process_bytes(), self._first_bytes
            if used is not None and first is not None and used - first > self._limit_bytes:
                await self._end_longest()
            await asyncio.sleep(_CHECK_S)

    async def _end_longest(self) -> None:
        longest = list(self._reading)[: len(self._reading) // 2]
        logger.warning("out of memory for messages: ending %d calls whose messages have not arrived in full", len(longest))
        for context in longest:
            try:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"out of memory for the rest of the message: {_REMEDY}")
            except grpc.aio.AbortError:
                continue  # raised here, and again by the read that it ends
            except (grpc.aio.InternalError, grpc.aio.UsageError):
                continue  # the call has already ended
        await asyncio.to_thread(trim_freed_memory)

    def _trim_soon(self) -> None:
        """Schedule a heap trim, because gRPC holds messages in small pieces that the C library keeps after they are freed."""
        if self._trim is None or self._trim.done():
            self._trim = asyncio.create_task(_trim_later())


async def _trim_later() -> None:
    await asyncio.sleep(_TRIM_S)
    await asyncio.to_thread(trim_freed_memory)


async def _write_all(answers: Any, context: Any) -> None:
    """Write the responses that a behaviour yields, or await a behaviour that writes its responses itself."""
    if inspect.isasyncgen(answers):
        async for answer in answers:
            await context.write(answer)
    else:
        await answers


def _process_bytes() -> int | None:
    """Return the resident memory of the process in bytes; None if it cannot be read."""
    try:
        return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None
