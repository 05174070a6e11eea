"""Bound on the memory of gRPC messages that have not arrived in full."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError

from tlcli.contract.process.malloc import trim_freed_memory

logger = logging.getLogger(__name__)

_UNCHECKED = 8
"""Calls that may be read at a time without a look at the memory."""

_LOOK_S = 0.05
_TRIM_S = 0.5
_PAGE_BYTES = 4096
_STATM = Path("/proc/self/statm")
_WAY_OUT = "send smaller messages, fewer at a time, or start the server with more memory (max_memory_bytes)"


class UnreadMessages(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Ends the calls whose message has been arriving longest, while the process holds more memory than it may.

    gRPC buffers a message until it is complete and tells nobody its length, so a client that sends all of it but the last byte costs
    memory that no request accounts for. Every call, a unary one too, is therefore offered as a stream, whose reads can be counted.
    Where the memory of the process is not known (not on Linux) nothing is ended.
    """

    def __init__(self, limit_bytes: int) -> None:
        """limit_bytes: by how much the process may grow from `begin`, or the first call, on."""
        self._limit_bytes = limit_bytes
        self._first_bytes: int | None = None
        self._reading: dict[Any, None] = {}  # contexts, the longest first
        self._watch: asyncio.Task[None] | None = None
        self._trim: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Measure growth from now on: models were loaded or unloaded, which is no growth by messages."""
        self._first_bytes = _process_bytes()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Put a handler that counts its reads in the place of any."""
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
            return await behaviour(await self._only_message(context), context)  # no frame of ours keeps the message

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
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call ended before its message")
        except grpc.aio.InternalError:
            raise asyncio.CancelledError from None  # the client has left, so there is nobody to tell

    async def _counted(self, context: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield await self._next(context)
        except StopAsyncIteration:
            return

    async def _next(self, context: Any) -> Any:
        """Read a message; while it arrives, the call is one of those that may be ended.

        Raises:
            StopAsyncIteration: there is none.
            AbortError: the call was ended, or the bytes are no message.
        """
        self._reading[context] = None
        if len(self._reading) > _UNCHECKED and (self._watch is None or self._watch.done()):
            self._watch = asyncio.create_task(self._look())
        try:
            message = await context.read()  # gRPC's iterator would keep the message for as long as its call
        except BaseException as error:
            self._trim_soon()
            if isinstance(error, DecodeError):  # of calls that are not ours; gRPC would answer UNKNOWN, and log a traceback
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "bytes came that are no message of this call")
            raise
        finally:
            self._reading.pop(context, None)
        if message is grpc.aio.EOF:  # type: ignore[attr-defined]  # the stubs leave it out
            self._trim_soon()
            raise StopAsyncIteration
        return message

    async def _look(self) -> None:
        """Look at the memory while many calls are being read."""
        while len(self._reading) > _UNCHECKED:
            used, first = _process_bytes(), self._first_bytes
            if used is not None and first is not None and used - first > self._limit_bytes:
                await self._end_longest()
            await asyncio.sleep(_LOOK_S)

    async def _end_longest(self) -> None:
        longest = list(self._reading)[: len(self._reading) // 2]
        logger.warning("memory is short: %d calls whose messages have not arrived are ended", len(longest))
        for context in longest:
            try:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"no memory is left for the rest of the message: {_WAY_OUT}")
            except grpc.aio.AbortError:
                continue  # raised here, and once more by the read that it ends
            except (grpc.aio.InternalError, grpc.aio.UsageError):
                continue  # the call has ended meanwhile
        await asyncio.to_thread(trim_freed_memory)

    def _trim_soon(self) -> None:
        """Trim the heap: gRPC holds messages in small pieces, which the C library keeps when they are freed."""
        if self._trim is None or self._trim.done():
            self._trim = asyncio.create_task(_trim_later())


async def _trim_later() -> None:
    await asyncio.sleep(_TRIM_S)
    await asyncio.to_thread(trim_freed_memory)


async def _write_all(answers: Any, context: Any) -> None:
    """Write what a behaviour yields; one that writes by itself is awaited."""
    if inspect.isasyncgen(answers):
        async for answer in answers:
            await context.write(answer)
    else:
        await answers


def _process_bytes() -> int | None:
    """Return the process's resident memory; None where it cannot be read."""
    try:
        return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None
