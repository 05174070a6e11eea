"""Dispatch of calls to the handlers and interceptors of a gRPC server, without running such a server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc.aio

from tlcli.service.protocol.rpc_methods import Context, Metadata

_Find = Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]]


@dataclass(frozen=True)
class CallDetails(grpc.HandlerCallDetails):
    """Details of a call, as interceptors receive them.

    method: path of the called method.
    invocation_metadata: metadata of the request.
    """

    method: str
    invocation_metadata: Metadata  # type: ignore[assignment]  # the stubs require a tuple


class Handlers:
    """Registry of handlers with the methods of `grpc.aio.Server` that add handlers before the server starts."""

    def __init__(self) -> None:
        self._handlers: list[grpc.GenericRpcHandler[Any, Any]] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler[Any, Any]]) -> None:
        """Add handlers, like the method of `grpc.aio.Server`."""
        self._handlers += handlers

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Do nothing, because generated code also adds the same handlers with `add_generic_rpc_handlers`."""

    async def find(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of a call, or None if there is none."""
        candidates = (generic.service(details) for generic in self._handlers)
        return next((handler for handler in candidates if handler is not None), None)


class Dispatch:
    """Dispatcher that passes calls through interceptors to their handlers."""

    def __init__(self, handlers: Handlers, interceptors: Sequence[grpc.aio.ServerInterceptor]) -> None:  # type: ignore[type-arg]
        """Create a dispatcher that wraps the handlers with interceptors. The first interceptor is the outermost."""
        self._find: _Find = handlers.find
        for interceptor in reversed(interceptors):
            self._find = partial(interceptor.intercept_service, self._find)

    async def answer(self, path: str, data: bytes, context: Context, metadata: Metadata) -> bytes:
        """Handle a unary call. The request and the response are serialized messages.

        Raises:
            Exception: the exception that `context.abort` raises for a rejected call.
        """
        handler = await self._handler(path, metadata, context)
        request = data if handler.request_deserializer is None else handler.request_deserializer(data)
        # An interceptor's rejection is a streaming handler for any kind of call: it aborts before it reads a request.
        response = await (handler.unary_unary or handler.stream_stream)(request, context)
        serialized: bytes = response if handler.response_serializer is None else handler.response_serializer(response)
        return serialized

    async def answer_stream(self, path: str, requests: AsyncIterator[bytes], context: Context, metadata: Metadata) -> None:
        """Handle a bidirectional stream. Responses are written to the context as messages.

        Raises:
            Exception: the exception that `context.abort` raises for a rejected call.
        """
        handler = await self._handler(path, metadata, context)
        await handler.stream_stream(requests, context)

    async def _handler(self, path: str, metadata: Metadata, context: Context) -> Any:
        handler = await self._find(CallDetails(path, metadata))
        if handler is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"unknown method {path}")
        return handler
