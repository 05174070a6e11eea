"""A call that Ray's proxy took: what the edges ask of gRPC's context, put on Ray's, which carries it back to the proxy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
from ray.serve.grpc_util import RayServegRPCContext

from tlcli.ray.call_outcome import TOLD
from tlcli.service.protocol.rpc_methods import Metadata


class Aborted(Exception):  # noqa: N818  # as gRPC's own, which is no error of anybody's
    """The call has ended with the status that its context holds."""


class Taken:
    """A `tlcli.service.protocol.rpc_methods.Context`."""

    def __init__(self, context: RayServegRPCContext, write: Callable[[Any], Awaitable[None]] | None = None) -> None:
        """write: sends one message of a stream; None where the call has one answer."""
        self._context = context
        self._write = write
        self._trailing_metadata: Metadata = ()

    def invocation_metadata(self) -> Metadata:
        """What came beside the request."""
        return [*self._context.invocation_metadata()]

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """End the call with this status.

        Raises:
            Aborted: always.
        """
        self._context.set_code(code)
        self._context.set_details(details)
        self.set_trailing_metadata((*(trailing_metadata or self._trailing_metadata), TOLD))
        raise Aborted

    async def write(self, message: Any) -> None:
        """Send one message of a stream."""
        assert self._write is not None, "a call with one answer returns it"
        await self._write(message)

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        """What goes behind the answer; Ray adds its id of the request."""
        self._trailing_metadata = trailing_metadata
        self._context.set_trailing_metadata([(key, value) for key, value in trailing_metadata])

    def code(self) -> grpc.StatusCode:
        """The status set so far; a number while there is none."""
        code: grpc.StatusCode = self._context.code()
        return code

    def time_remaining(self) -> float | None:
        """Ray does not tell."""
        return None
