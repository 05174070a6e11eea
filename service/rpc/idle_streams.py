"""Time limits for streams whose client neither sends nor reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from tlcli.contract.errors import TimeLimitError

T = TypeVar("T")


async def until_idle(items: AsyncIterator[T], idle_s: float, is_busy: Callable[[], bool]) -> AsyncGenerator[T, None]:
    """Yield the items of a stream as they arrive.

    Args:
        items: items that the client sends.
        idle_s: time limit for the next item in seconds; 0 for no limit.
        is_busy: returns True while the server works on earlier items. The time limit is not enforced then, because the client may be
            waiting for their responses.

    Raises:
        TimeLimitError: no item arrived in time.
    """
    while True:
        reading = asyncio.ensure_future(_next(items))
        try:
            while not (await asyncio.wait({reading}, timeout=idle_s or None))[0]:
                if not is_busy():
                    raise TimeLimitError(
                        f"the stream received nothing for {idle_s:g} s (stream_idle_s): open a stream when there are images to send"
                    )
            item = await reading
        except StopAsyncIteration:
            return
        finally:
            reading.cancel()
        yield item


async def write_or_time_out(writing: Awaitable[None], idle_s: float) -> None:
    """Write a response, which waits until the client has room for it.

    Args:
        writing: awaitable that writes the response.
        idle_s: time limit in seconds; 0 for no limit.

    Raises:
        TimeLimitError: the client did not read its responses in time.
    """
    try:
        async with asyncio.timeout(idle_s or None):
            await writing
    except TimeoutError as error:
        raise TimeLimitError(
            f"the client read no response of the stream for {idle_s:g} s (stream_idle_s): read responses as they arrive"
        ) from error


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)
