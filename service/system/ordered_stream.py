"""Concurrent processing of a stream that keeps the order of its items."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def in_order(items: AsyncIterable[T], work: Callable[[T], Awaitable[R]], limit: int) -> AsyncGenerator[R, None]:
    """Yield `await work(item)` for each item, in the order of the items.

    An item is read only while fewer than `limit` items are in progress or waiting to be consumed. A fast sender or a slow receiver
    therefore pauses reading instead of filling the memory. Each result is yielded as soon as it is next in order, because a sender
    may wait for it before sending the next item.

    Closing or cancelling the generator cancels the items in progress.

    Raises:
        Exception: any exception raised by `items` or `work`.
    """
    room = asyncio.Semaphore(limit)
    pending: asyncio.Queue[asyncio.Future[R] | None] = asyncio.Queue()
    in_progress: set[asyncio.Future[R]] = set()

    async def read() -> None:
        try:
            await room.acquire()
            async for item in items:
                task = asyncio.ensure_future(work(item))
                in_progress.add(task)
                task.add_done_callback(in_progress.discard)
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
        for task in tuple(in_progress):
            task.cancel()
