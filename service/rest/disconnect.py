"""Cancellation of work when its client disconnects, and of all work at shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from tlcli.contract.errors import ServerError

T = TypeVar("T")

_READ_S = 120.0
"""Time limit for receiving a request body in seconds."""


class CancelOnDisconnect:
    """Guard that cancels awaited work when its client disconnects or when `cancel_all` is called."""

    def __init__(self) -> None:
        self._shutdown = asyncio.Event()

    def cancel_all(self) -> None:
        """Cancel all current and future work, because the grace period is over."""
        self._shutdown.set()

    async def read(self, work: Coroutine[Any, Any, T]) -> T:
        """Await work that reads the request body and return its result. Such work detects a disconnect itself.

        Raises:
            ServerError: the server is shutting down.
            HTTPException: 408: reading took too long.
            Exception: any error that `work` raises.
        """
        try:
            async with asyncio.timeout(_READ_S):
                return await self._first(work, self._until_shutdown())
        except TimeoutError as error:
            message = f"the body did not arrive within {_READ_S:g} s: send less at a time"
            raise HTTPException(408, message, {"Connection": "close"}) from error

    async def answer(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """Await work for a request that has been read completely and return its result.

        Raises:
            ClientDisconnect: the client disconnected.
            ServerError: the server is shutting down.
            Exception: any error that `work` raises.
        """
        return await self._first(work, self._until_shutdown(), _until_disconnect(request))

    async def _first(self, work: Coroutine[Any, Any, T], *ends: Coroutine[Any, Any, Exception]) -> T:
        working = asyncio.ensure_future(work)
        ending = [asyncio.ensure_future(end) for end in ends]
        try:
            await asyncio.wait([working, *ending], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                working.add_done_callback(_retrieve_error)
                raise next(end for end in ending if end.done()).result()
            return working.result()
        finally:
            for task in (working, *ending):
                task.cancel()
            # An error's traceback references this frame, and the task references the error. The cycle would keep the request's body alive.
            del working, ending, task

    async def _until_shutdown(self) -> Exception:
        await self._shutdown.wait()
        return ServerError("the server shut down before it answered: retry, to reach the server that takes over")


async def _until_disconnect(request: Request) -> Exception:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return ClientDisconnect()


def _retrieve_error(cancelled: asyncio.Future[Any]) -> None:
    """Retrieve an error that work raised while being cancelled, because asyncio logs errors that are never retrieved."""
    if not cancelled.cancelled():
        cancelled.exception()
