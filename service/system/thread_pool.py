"""Thread pool for work that would block the event loop. It measures how long each job waits and runs."""

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
    """Result of a job, with the time that it waited for a thread and the time that it ran, in nanoseconds."""

    value: T
    waited_ns: int
    took_ns: int


class Workers:
    """Thread pool of fixed size with one first-in, first-out queue."""

    def __init__(self, threads: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name)
        self._threads = threads
        self._started: dict[int, float] = {}

    def stuck(self, seconds: float) -> bool:
        """Return True if every thread has been running its current job for longer than `seconds`."""
        now, started = time.monotonic(), list(self._started.values())
        return len(started) == self._threads and all(now - since > seconds for since in started)

    def _busy(self, job: Callable[[], T]) -> T:
        thread = threading.get_ident()
        self._started[thread] = time.monotonic()
        try:
            return job()
        finally:
            del self._started[thread]

    async def do(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Timed[T]:
        """Run `job` in a thread and return its result with timings.

        If the caller is cancelled, a queued job never runs. A running job finishes, but its result is discarded.

        Raises:
            Exception: any exception raised by `job`.
        """
        submitted_ns = time.monotonic_ns()

        def timed() -> Timed[T]:
            started_ns = time.monotonic_ns()
            value = job(*args, **kwargs)
            return Timed(value, started_ns - submitted_ns, time.monotonic_ns() - started_ns)

        return await asyncio.get_running_loop().run_in_executor(self._executor, self._busy, timed)

    def start(self, job: Callable[[], None]) -> None:
        """Run `job` in a thread without waiting for it. The job must handle its own errors. Callable from any thread.

        Raises:
            RuntimeError: the pool is closed.
        """
        self._executor.submit(self._busy, job)

    def close(self, wait: bool = True) -> None:
        """Cancel queued jobs. With `wait`, block until the running jobs have finished."""
        self._executor.shutdown(wait=wait, cancel_futures=True)
