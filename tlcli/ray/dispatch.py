"""Calls answered as gRPC's server answers them, by the same handlers behind the same interceptors, without a server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc.aio

from tlcli.service.protocol.rpc_methods import Context, Metadata

_Find = Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]]


@dataclass(frozen=True)
class Details(grpc.HandlerCallDetails):
    """method: its path. invocation_metadata: what came beside the request."""

    method: str
    invocation_metadata: Metadata  # type: ignore[assignment]  # the stubs want a tuple


class Handlers:
    """Takes what a `grpc.aio.Server` is given before it starts."""

    def __init__(self) -> None:
        self._handlers: list[grpc.GenericRpcHandler[Any, Any]] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler[Any, Any]]) -> None:
        """As the server has it."""
        self._handlers += handlers

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """The same handlers, which generated code gives the server in a second way."""

    async def find(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a call; None where nobody has one."""
        found = (one.service(details) for one in self._handlers)
        return next((handler for handler in found if handler is not None), None)


class Dispatch:
    """Answers calls."""

    def __init__(self, handlers: Handlers, interceptors: Sequence[grpc.aio.ServerInterceptor]) -> None:  # type: ignore[type-arg]
        """interceptors: the first is the outermost."""
        self._find: _Find = handlers.find
        for one in reversed(interceptors):
            self._find = partial(one.intercept_service, self._find)

    async def answer(self, path: str, data: bytes, context: Context, metadata: Metadata) -> bytes:
        """One message to a call with one answer, both as they travel.

        Raises:
            Exception: what `context.abort` raises.
        """
        handler = await self._handler(path, metadata, context)
        request = data if handler.request_deserializer is None else handler.request_deserializer(data)
        # A refusal is a stream, whatever call it stands for: it ends the call before it reads anything.
        answer = await (handler.unary_unary or handler.stream_stream)(request, context)
        written: bytes = answer if handler.response_serializer is None else handler.response_serializer(answer)
        return written

    async def answer_stream(self, path: str, requests: AsyncIterator[bytes], context: Context, metadata: Metadata) -> None:
        """A call that streams both ways: answers are written to the context, as messages.

        Raises:
            Exception: what `context.abort` raises.
        """
        handler = await self._handler(path, metadata, context)
        await handler.stream_stream(requests, context)

    async def _handler(self, path: str, metadata: Metadata, context: Context) -> Any:
        handler = await self._find(Details(path, metadata))
        if handler is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{path}: no such call here")
        return handler
