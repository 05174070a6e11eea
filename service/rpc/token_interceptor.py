"""Who may ask: every call but health checks must carry a token, where the server has tokens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio
from grpc_health.v1 import health

from tlcli.service.security.tokens import Token, refusal
from tlcli.service.system.reloading_file import ReloadingFile

OPEN = frozenset({f"/{health.SERVICE_NAME}/Check", f"/{health.SERVICE_NAME}/Watch"})
"""Load balancers and container managers ask for health, and have no token. `List` would tell them every model's name."""


class TokenGuard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Ends calls without a token, or with another one, with UNAUTHENTICATED, before anything of them is read."""

    def __init__(self, tokens: ReloadingFile[tuple[Token, ...]]) -> None:
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Let a call through, or put a refusal in its handler's place."""
        if handler_call_details.method in OPEN:
            return await continuation(handler_call_details)
        given = [value for key, value in handler_call_details.invocation_metadata or () if key == "authorization"]
        reason = refusal([value if isinstance(value, bytes) else value.encode() for value in given], self._tokens.get())
        if not reason:
            return await continuation(handler_call_details)

        async def refuse(requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)

        return grpc.stream_stream_rpc_method_handler(refuse)  # of calls of every kind: it reads no request and writes no answer
