"""Interceptor that drains a server before shutdown by rejecting new requests with UNAVAILABLE and a retry delay.

gRPC cancels requests that reach a server while it closes its connections, and clients may not treat a cancellation as a reason to retry.
Therefore, new requests are rejected for a while beforehand, with a retry delay that ends after the close. Clients with a retry policy (gRFC
A6) then connect to the server that has taken over.
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

_MARGIN_S = 0.05


class DrainInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Interceptor that passes every call until `drain` is called, and only health checks afterwards."""

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
        retry_s = max(0.0, self._closes_at - time.monotonic()) + _MARGIN_S
        status = rpc_status.to_status(
            error_status.to_status(ServerError("the server is shutting down: retry, to reach the server that takes over"))
        )

        async def reject(requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            metadata = (*status.trailing_metadata, (RETRY_AFTER_MS, str(round(1000 * retry_s))), *echoed_metadata())
            await context.abort(status.code, status.details, metadata)

        return grpc.stream_stream_rpc_method_handler(reject)  # works for every kind of call: it reads no request and writes no answer
