"""A server that is about to stop sends new requests away, to come back when it has hung up.

gRPC cancels the requests that reach a server in the moment in which it hangs up, and a client may not take that for a reason to ask
again. So for a while before it new requests are refused with UNAVAILABLE, and told to come back after it: clients with a retry policy
(gRFC A6) then connect to whoever has taken over.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio
from grpc_health.v1 import health
from grpc_status import rpc_status

from tlcli.contract.errors import ServerError
from tlcli.service.protocol import error_status
from tlcli.service.rpc.error_handling import RETRY_AFTER_MS
from tlcli.service.telemetry.request_interceptor import echoed_metadata

_AFTERWARDS_S = 0.05


class LeavingGuard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Lets every call through until `leave`; from then on health checks alone."""

    def __init__(self) -> None:
        self._hangs_up_at: float | None = None

    def leave(self, in_s: float) -> None:
        """The server hangs up in so many seconds."""
        self._hangs_up_at = time.monotonic() + in_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Let a call through, or put a refusal in its handler's place."""
        if self._hangs_up_at is None or handler_call_details.method.startswith(f"/{health.SERVICE_NAME}/"):
            return await continuation(handler_call_details)
        back_in_s = max(0.0, self._hangs_up_at - time.monotonic()) + _AFTERWARDS_S
        status = rpc_status.to_status(error_status.to_status(ServerError("the server is stopping: ask again, of the one that takes over")))

        async def refuse(requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            metadata = (*status.trailing_metadata, (RETRY_AFTER_MS, str(round(1000 * back_in_s))), *echoed_metadata())
            await context.abort(status.code, status.details, metadata)

        return grpc.stream_stream_rpc_method_handler(refuse)  # of calls of every kind: it reads no request and writes no answer
