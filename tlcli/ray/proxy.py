"""What Ray's gRPC proxies offer: they pass the calls of both protocols on to a replica, and tell what happened in the protocols' own codes.

Named in a Serve config's `grpc_servicer_functions`, and run in each proxy. Messages pass through as bytes: nothing here knows a model, and
the Open Inference Protocol's messages need not be in protobuf's own pool.

Ray has no word for a replica that dies under a request: its proxy says INTERNAL, which nobody asks again for, and says it behind an empty
answer, after which gRPC's clients do not ask again whatever the code is. So what a proxy does with a call stands behind something that
looks at its end: a failure of Ray's becomes UNAVAILABLE or RESOURCE_EXHAUSTED, with a status as `error_status` writes them, and any
failure is told before anything else.
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
"""Of health alone: a `Watch` would hold on to a replica that Ray wants to stop."""


def add_to_proxy(servicer: object, server: Any) -> None:
    """Offer both protocols, health checks and reflection.

    Args:
        servicer: Ray's, which is nobody.
        server: Ray's: it puts its own behaviour in the place of each handler's in `_method_handlers`.
    """
    for service in SERVICES:
        server.add_generic_rpc_handlers((Passed(service, [method.name for method in service.methods]),))
    server.add_generic_rpc_handlers((Passed(HEALTH, [_CHECK]),))
    enable_reflection(_Here(server))


class Passed(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs alone
    """Calls of a service that are passed on."""

    def __init__(self, service: ServiceDescriptor, names: Sequence[str]) -> None:
        methods = [method for method in service.methods if method.name in names]
        self._method_handlers = {path_of(method): _nobody(method.client_streaming) for method in methods}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Ray's handler, behind what looks at its end."""
        handler: Any = self._method_handlers.get(handler_call_details.method)
        if handler is None:
            return None
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(_stream(handler.stream_stream))
        return grpc.unary_unary_rpc_method_handler(_unary(handler.unary_unary))


class _Here:
    """Ray's server for handlers that answer in the proxy itself: it finds nothing in them to put its own in place of."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """As a server has it."""
        for one in handlers:
            self._server.add_generic_rpc_handlers((_Answered(one.service),))

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """The same handlers, which generated code gives a server in a second way."""


class _Answered(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs alone
    def __init__(self, find: Callable[[grpc.HandlerCallDetails], Any]) -> None:
        self._method_handlers: dict[str, object] = {}
        self._find = find

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._find(handler_call_details)


def _nobody(streams: bool) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler without a behaviour, which Ray gives it. Without serializers bytes go in and out."""
    return grpc.stream_stream_rpc_method_handler(_missing) if streams else grpc.unary_unary_rpc_method_handler(_missing)


async def _missing(request: object, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Ray Serve has not taken this call: another version of it is needed")


def _unary(pass_on: Callable[[bytes, Any], Awaitable[bytes]]) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def call(request: bytes, context: Any) -> bytes:
        attempt = Attempt(context)
        answer = await pass_on(request, attempt)
        await attempt.end()
        return answer

    return call


def _stream(pass_on: Callable[[Any, Any], AsyncIterator[bytes]]) -> Callable[[Any, Any], AsyncIterator[bytes]]:
    async def call(requests: Any, context: Any) -> AsyncIterator[bytes]:
        attempt = Attempt(context)
        async for answer in pass_on(requests, attempt):
            if not attempt.failed:  # a refusal comes with an answer without a word
                yield answer
        await attempt.end()

    return call


class Attempt:
    """gRPC's context as Ray's proxy sees it: what it says of the call's end is kept here, where it can be looked at."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._code: Any = 0
        self._details = ""
        self._trailing_metadata: tuple[tuple[str, Any], ...] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def code(self) -> Any:
        """What was set; 0 before."""
        return self._code

    def details(self) -> str:
        """What was set."""
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, Any], ...]:
        """What was set."""
        return self._trailing_metadata

    def set_code(self, code: Any) -> None:
        """See gRPC's."""
        self._code = code

    def set_details(self, details: str) -> None:
        """See gRPC's."""
        self._details = details

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """See gRPC's."""
        self._trailing_metadata = tuple(tuple(pair) for pair in trailing_metadata)

    @property
    def failed(self) -> bool:
        """Whether the call has ended, and not well."""
        return self._code not in (0, None, grpc.StatusCode.OK)

    async def end(self) -> None:
        """Tell the client how it ended, if it ended well; otherwise end it here."""
        if not self.failed:
            self._context.set_trailing_metadata(self._trailing_metadata)
            return
        status = status_of(self._code, self._details, self._trailing_metadata)
        await self._context.abort(status.code, status.details, status.trailing_metadata)
