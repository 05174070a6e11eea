"""Work for clients that may leave, on a server that may stop: either ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from tlcli.contract.errors import ServerError

T = TypeVar("T")

_READ_S = 120.0
"""For the body of a request to come."""


class Attending:
    """Awaits work until it is done, its client has left, or `end`: then it is cancelled."""

    def __init__(self) -> None:
        self._over = asyncio.Event()

    def end(self) -> None:
        """Cancel all work, now and later: the time that it was given is over."""
        self._over.set()

    async def read(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns, which reads the request itself, and so sees its client leave.

        Raises:
            ServerError: the server stops.
            HTTPException: 408: it took too long.
            Exception: what `work` raises.
        """
        try:
            async with asyncio.timeout(_READ_S):
                return await self._first(work, self._until_over())
        except TimeoutError as error:
            late = f"the body did not come within {_READ_S:g} s: send less at a time"
            raise HTTPException(408, late, {"Connection": "close"}) from error

    async def answer(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns, for a request that was read to its end.

        Raises:
            ClientDisconnect: the client left.
            ServerError: the server stops.
            Exception: what `work` raises.
        """
        return await self._first(work, self._until_over(), _until_gone(request))

    async def _first(self, work: Coroutine[Any, Any, T], *ends: Coroutine[Any, Any, Exception]) -> T:
        working = asyncio.ensure_future(work)
        ending = [asyncio.ensure_future(end) for end in ends]
        try:
            await asyncio.wait([working, *ending], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                working.add_done_callback(_heard)
                raise next(end for end in ending if end.done()).result()
            return working.result()
        finally:
            for task in (working, *ending):
                task.cancel()
            # An error's traceback holds this frame: with the task that holds the error it would be a cycle, and keep the request's body.
            del working, ending, task

    async def _until_over(self) -> Exception:
        await self._over.wait()
        return ServerError("the server stopped before this request was answered: ask again, of the one that takes over")


async def _until_gone(request: Request) -> Exception:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return ClientDisconnect()


def _heard(cancelled: asyncio.Future[Any]) -> None:
    """Take an error that work raises while it is cancelled: nobody is left to hear it, and asyncio would complain."""
    if not cancelled.cancelled():
        cancelled.exception()
