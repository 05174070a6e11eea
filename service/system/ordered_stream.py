"""Work on several items of a stream at once, answer them in their order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def in_order(items: AsyncIterable[T], work: Callable[[T], Awaitable[R]], limit: int) -> AsyncGenerator[R, None]:
    """Yield `await work(item)` for each item, in the order of the items.

    An item is read only while fewer than `limit` are worked on or wait to be taken, so a sender that is faster
    than the work, or a receiver that is slower, stops the reading and not the memory. A result is yielded as
    soon as its turn comes: a sender may wait for it before it sends the next item.

    Closed or cancelled early, it cancels what is under way.

    Raises:
        Exception: what `items` or `work` raises.
    """
    room = asyncio.Semaphore(limit)
    pending: asyncio.Queue[asyncio.Future[R] | None] = asyncio.Queue()
    under_way: set[asyncio.Future[R]] = set()

    async def read() -> None:
        try:
            await room.acquire()
            async for item in items:
                task = asyncio.ensure_future(work(item))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                pending.put_nowait(task)
                await room.acquire()
        finally:
            pending.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (task := await pending.get()) is not None:
            yield await task
            room.release()
        await reader
    finally:
        reader.cancel()
        for task in tuple(under_way):
            task.cancel()
