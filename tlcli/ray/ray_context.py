"""Adapter that gives Ray's call context the interface that our handlers expect. Ray's context carries the status back to the proxy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
from ray.serve.grpc_util import RayServegRPCContext

from tlcli.ray.call_outcome import FROM_APPLICATION
from tlcli.service.protocol.rpc_methods import Metadata


class CallAborted(Exception):  # noqa: N818  # like gRPC's own AbortError, control flow and not an error
    """Exception that ends a call after `RayContext.abort`. The context of the call holds the status."""


class RayContext:
    """Implementation of `tlcli.service.protocol.rpc_methods.Context` on Ray's context."""

    def __init__(self, context: RayServegRPCContext, write: Callable[[Any], Awaitable[None]] | None = None) -> None:
        """Wrap Ray's context.

        Args:
            context: context that Ray passes to the replica.
            write: function that sends one message of a stream; None for a unary call.
        """
        self._context = context
        self._write = write
        self._trailing_metadata: Metadata = ()

    def invocation_metadata(self) -> Metadata:
        """Return the metadata of the request."""
        return [*self._context.invocation_metadata()]

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """End the call with a status.

        Raises:
            CallAborted: always.
        """
        self._context.set_code(code)
        self._context.set_details(details)
        self.set_trailing_metadata((*(trailing_metadata or self._trailing_metadata), FROM_APPLICATION))
        raise CallAborted

    async def write(self, message: Any) -> None:
        """Send one message of a stream."""
        assert self._write is not None, "a unary call returns its response"
        await self._write(message)

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        """Set the trailing metadata. Ray adds its request id to them."""
        self._trailing_metadata = trailing_metadata
        self._context.set_trailing_metadata([(key, value) for key, value in trailing_metadata])

    def code(self) -> grpc.StatusCode:
        """Return the status code set so far, or a number if none is set."""
        code: grpc.StatusCode = self._context.code()
        return code

    def time_remaining(self) -> float | None:
        """Return None, because Ray does not pass deadlines on to replicas."""
        return None
