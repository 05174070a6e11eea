"""Streams on which nothing moves: their client neither sends nor takes anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from tlcli.contract.errors import TimeLimitError

T = TypeVar("T")


async def until_idle(items: AsyncIterator[T], idle_s: float, is_busy: Callable[[], bool]) -> AsyncGenerator[T, None]:
    """Yield the items of a stream as they come.

    Args:
        items: what the client sends.
        idle_s: how long none may come; 0 for any time.
        is_busy: where the server works on earlier ones, the client waits for it, and may.

    Raises:
        TimeLimitError: none came in that time.
    """
    while True:
        reading = asyncio.ensure_future(_next(items))
        try:
            while not (await asyncio.wait({reading}, timeout=idle_s or None))[0]:
                if not is_busy():
                    raise TimeLimitError(f"nothing came on this stream for {idle_s:g} s: open one when there are images to send")
            item = await reading
        except StopAsyncIteration:
            return
        finally:
            reading.cancel()
        yield item


async def taken(writing: Awaitable[None], idle_s: float) -> None:
    """Wait until the client has room for an answer.

    Raises:
        TimeLimitError: it had none for `idle_s`; 0 for any time.
    """
    try:
        async with asyncio.timeout(idle_s or None):
            await writing
    except TimeoutError as error:
        raise TimeLimitError(f"no answer was taken from this stream for {idle_s:g} s: read answers as they come") from error


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)
