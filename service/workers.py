"""Threads for what would hold up the event loop, each job with the time it waited and the time it took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Timed(Generic[T]):
    """What a job returned, how long it waited for a thread, and how long it ran, in nanoseconds."""

    value: T
    waited_ns: int
    took_ns: int


class Workers:
    """A fixed number of threads with one queue, first in, first out."""

    def __init__(self, threads: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name)

    async def do(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Timed[T]:
        """Run `job` in a thread. Cancelled while it waits, it never runs; once running it runs to its end, unheard.

        Raises:
            Exception: what `job` raises.
        """
        asked = time.monotonic_ns()

        def timed() -> Timed[T]:
            begun = time.monotonic_ns()
            value = job(*args, **kwargs)
            return Timed(value, begun - asked, time.monotonic_ns() - begun)

        return await asyncio.get_running_loop().run_in_executor(self._executor, timed)

    def start(self, job: Callable[[], None]) -> None:
        """Let a thread run `job`, which sees to its errors itself; nobody waits for it. From any thread.

        Raises:
            RuntimeError: closed.
        """
        self._executor.submit(job)

    def close(self, wait: bool = True) -> None:
        """Drop what waits for a thread, and wait for what runs, unless told not to."""
        self._executor.shutdown(wait=wait, cancel_futures=True)
