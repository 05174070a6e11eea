"""Interceptor that requires a token for every call except health checks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio
from grpc_health.v1 import health

from tlcli.service.security.tokens import Token, refusal
from tlcli.service.system.reloading_file import ReloadingFile

OPEN = frozenset({f"/{health.SERVICE_NAME}/Check", f"/{health.SERVICE_NAME}/Watch"})
"""Methods that need no token, because load balancers and container managers check health without one. `List` is not included, because it
would reveal the names of models."""


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
        if handler_call_details.method in OPEN:
            return await continuation(handler_call_details)
        values = [value for key, value in handler_call_details.invocation_metadata or () if key == "authorization"]
        reason = refusal([value if isinstance(value, bytes) else value.encode() for value in values], self._tokens.get())
        if not reason:
            return await continuation(handler_call_details)

        async def reject(requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)

        return grpc.stream_stream_rpc_method_handler(reject)  # works for every kind of call: it reads no request and writes no answer
