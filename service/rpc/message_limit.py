"""Calls that are not ours, health and reflection, take small messages: a large one is not parsed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio

from tlcli.service.protocol.rpc_methods import SERVICES, path_of

_OURS = {path_of(method) for service in SERVICES for method in service.methods}
_MAX_BYTES = 64 * 1024


class SmallMessages(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Reads messages of more than 64 KiB as empty ones, where gRPC itself would parse them in the event loop: fields that are unknown,
    which is what such a message must hold, mean nothing to these calls."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Put a bounded deserializer in the place of a foreign one."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler_call_details.method in _OURS or handler.request_deserializer is None:
            return handler  # type: ignore[no-any-return]
        deserialize = handler.request_deserializer
        small = handler._replace(request_deserializer=lambda data: deserialize(data if len(data) <= _MAX_BYTES else b""))
        return small  # type: ignore[no-any-return]  # noqa: RET504
