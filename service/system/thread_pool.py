"""Threads for what would hold up the event loop, each job with the time it waited and the time it took."""

from __future__ import annotations

import asyncio
import threading
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
        self._threads = threads
        self._begun: dict[int, float] = {}

    def stuck(self, seconds: float) -> bool:
        """Return True if every thread has been at one job for longer than this."""
        now, begun = time.monotonic(), list(self._begun.values())
        return len(begun) == self._threads and all(now - since > seconds for since in begun)

    def _busy(self, job: Callable[[], T]) -> T:
        thread = threading.get_ident()
        self._begun[thread] = time.monotonic()
        try:
            return job()
        finally:
            del self._begun[thread]

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

        return await asyncio.get_running_loop().run_in_executor(self._executor, self._busy, timed)

    def start(self, job: Callable[[], None]) -> None:
        """Let a thread run `job`, which sees to its errors itself; nobody waits for it. From any thread.

        Raises:
            RuntimeError: closed.
        """
        self._executor.submit(self._busy, job)

    def close(self, wait: bool = True) -> None:
        """Drop what waits for a thread, and wait for what runs, unless told not to."""
        self._executor.shutdown(wait=wait, cancel_futures=True)
