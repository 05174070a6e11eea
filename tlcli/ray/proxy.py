"""Handlers for Ray's gRPC proxies that forward calls of both protocols to a replica and translate failures to the protocols' status codes.

A Serve config lists `add_to_proxy` in its `grpc_servicer_functions`, and each proxy calls it. Messages are forwarded as bytes, so this
module loads no model, and the messages of the Open Inference Protocol need not be in protobuf's default pool.

Ray has no separate status for a replica that dies during a request. Its proxy reports INTERNAL, which clients do not retry, and sends it
after an empty response, after which gRPC clients never retry. Each forwarded call is therefore wrapped: a failure in Ray becomes
UNAVAILABLE or RESOURCE_EXHAUSTED, with a status in the format of `error_status`, and a failure is never preceded by an empty response.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2

from tlcli.ray.call_outcome import status_of
from tlcli.service.protocol.rpc_methods import SERVICES, path_of
from tlcli.service.rpc.reflection import enable_reflection

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]

_CHECK = "Check"
"""Only health method that the proxy offers. A `Watch` call would keep a replica alive that Ray wants to stop."""


def add_to_proxy(servicer: object, server: Any) -> None:
    """Add handlers for both protocols, health checks and reflection to a proxy.

    Args:
        servicer: placeholder that Ray passes, unused.
        server: gRPC server of the proxy. It replaces the behaviour of each handler in `_method_handlers` with its own.
    """
    for service in SERVICES:
        server.add_generic_rpc_handlers((ForwardedCalls(service, [method.name for method in service.methods]),))
    server.add_generic_rpc_handlers((ForwardedCalls(HEALTH, [_CHECK]),))
    enable_reflection(_LocalServer(server))


class ForwardedCalls(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic only in the stubs
    """Handler that forwards calls of a service to a replica."""

    def __init__(self, service: ServiceDescriptor, names: Sequence[str]) -> None:
        methods = [method for method in service.methods if method.name in names]
        self._method_handlers = {path_of(method): _placeholder(method.client_streaming) for method in methods}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return Ray's handler of a call, wrapped so that the final status is translated, or None for an unknown method."""
        handler: Any = self._method_handlers.get(handler_call_details.method)
        if handler is None:
            return None
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(_stream(handler.stream_stream))
        return grpc.unary_unary_rpc_method_handler(_unary(handler.unary_unary))


class _LocalServer:
    """Adapter for Ray's server that adds handlers to run in the proxy itself. It hides their methods so that Ray does not replace them."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Add handlers, like the method of `grpc.aio.Server`."""
        for handler in handlers:
            self._server.add_generic_rpc_handlers((_LocalCalls(handler.service),))

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Do nothing, because generated code also adds the same handlers with `add_generic_rpc_handlers`."""


class _LocalCalls(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic only in the stubs
    def __init__(self, find: Callable[[grpc.HandlerCallDetails], Any]) -> None:
        self._method_handlers: dict[str, object] = {}
        self._find = find

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._find(handler_call_details)


def _placeholder(streams: bool) -> grpc.RpcMethodHandler[Any, Any]:
    """Return a handler whose behaviour Ray replaces. It has no serializers, so messages remain bytes."""
    return grpc.stream_stream_rpc_method_handler(_missing) if streams else grpc.unary_unary_rpc_method_handler(_missing)


async def _missing(request: object, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Ray Serve did not replace this handler: use a supported version of Ray")


def _unary(forward: Callable[[bytes, Any], Awaitable[bytes]]) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def call(request: bytes, context: Any) -> bytes:
        attempt = Attempt(context)
        response = await forward(request, attempt)
        await attempt.end()
        return response

    return call


def _stream(forward: Callable[[Any, Any], AsyncIterator[bytes]]) -> Callable[[Any, Any], AsyncIterator[bytes]]:
    async def call(requests: Any, context: Any) -> AsyncIterator[bytes]:
        attempt = Attempt(context)
        async for response in forward(requests, attempt):
            if not attempt.failed:  # the response of a rejected call is empty
                yield response
        await attempt.end()

    return call


class Attempt:
    """Wrapper of gRPC's context that holds back the status set by Ray's proxy until the call has ended."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._code: Any = 0
        self._details = ""
        self._trailing_metadata: tuple[tuple[str, Any], ...] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def code(self) -> Any:
        """Return the status code, or 0 if none was set."""
        return self._code

    def details(self) -> str:
        """Return the status message."""
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, Any], ...]:
        """Return the trailing metadata."""
        return self._trailing_metadata

    def set_code(self, code: Any) -> None:
        """Set the status code."""
        self._code = code

    def set_details(self, details: str) -> None:
        """Set the status message."""
        self._details = details

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Set the trailing metadata."""
        self._trailing_metadata = tuple(tuple(pair) for pair in trailing_metadata)

    @property
    def failed(self) -> bool:
        """True if the call has an error status."""
        return self._code not in (0, None, grpc.StatusCode.OK)

    async def end(self) -> None:
        """End the call: send the trailing metadata to the client, or abort a failed call with the translated status."""
        if not self.failed:
            self._context.set_trailing_metadata(self._trailing_metadata)
            return
        status = status_of(self._code, self._details, self._trailing_metadata)
        await self._context.abort(status.code, status.details, status.trailing_metadata)
