"""Memory budget shared by all requests: for bodies, decoded images, drawings, and runs at sizes other than the model's own."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tlcli.contract.errors import MemoryLimitError, RequestError

T = TypeVar("T")

WAIT_S = 2.0
"""Seconds that a request waits for memory before it is rejected."""

_SMALL_SHARE = 64
_KEPT_SHARE = 4
"""Divisors of the budget. A request for more than 1/64 of the budget counts as large. Large requests leave a quarter of the budget to
other requests, except when no more than that quarter is in use."""

_BODIES_SHARE = 2
_UNLIMITED_BYTES = 1 << 60


class MemoryNeeded(Exception):  # noqa: N818  # no failure: it is caught, and the work starts again
    """Signal from a thread that its work needs `bytes` of memory. The event loop waits for the memory, then starts the work again."""

    def __init__(self, needed_bytes: int) -> None:
        super().__init__(needed_bytes)
        self.bytes = needed_bytes


class MemoryBudget:
    """Budget that counts the memory in use and limits it.

    Waiting for memory happens in the event loop. `try_take` and `give` may be called from any thread.

    bodies: fraction of the budget for request bodies. Requests that hold a body wait for the memory to process it, so bodies must never
        take the total budget.
    """

    def __init__(self, total_bytes: int, wait_s: float = WAIT_S, whole: MemoryBudget | None = None) -> None:
        """Create a budget with no memory in use.

        Args:
            total_bytes: size of the budget in bytes.
            wait_s: maximum time in seconds that `take` waits for memory.
            whole: parent budget that this one is reserved from; None for an independent budget.
        """
        self.total_bytes = total_bytes
        self._wait_s = wait_s
        self._whole = whole
        self._lock: threading.RLock = threading.RLock() if whole is None else whole._lock
        self._used = self._peak = 0
        self.bodies = MemoryBudget(total_bytes // _BODIES_SHARE, wait_s, self) if whole is None else self
        self._waiting: deque[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()

    @property
    def used_bytes(self) -> int:
        """Number of bytes in use."""
        return self._used

    def take_peak(self) -> int:
        """Return the peak number of bytes in use since the last call, and start a new measurement."""
        with self._lock:
            peak, self._peak = self._peak, self._used
            return peak

    def lease(self) -> Lease:
        """Create an empty lease for one request."""
        return Lease(self)

    def try_take(self, size: int) -> bool:
        """Reserve memory without waiting. Return True if it was reserved.

        Return False if too little memory is free, or if the size is large and other requests are already waiting.
        """
        with self._lock:
            if (self._waiting and not self._is_small(size)) or not self._fits(size):
                return False
            self._add(size)
            return True

    def check(self, size: int) -> None:
        """Check that a size does not exceed the total budget.

        Raises:
            RequestError: `size` exceeds the total budget.
        """
        if size > self.total_bytes:
            raise RequestError(
                f"the request takes about {_mib(size)} of memory, and the server's budget is {_mib(self.total_bytes)}:"
                " send a smaller image or fewer at a time, or raise the server's max_memory_bytes"
            )

    async def take(self, size: int) -> None:
        """Reserve memory. If too little is free, wait behind the requests that are already waiting.

        Raises:
            RequestError: `size` exceeds the total budget.
            MemoryLimitError: not enough memory became free in time.
        """
        self.check(size)
        if self.try_take(size):
            return
        loop = asyncio.get_running_loop()
        waiter = (size, loop, loop.create_future())
        with self._lock:
            self._waiting.append(waiter)
        try:
            async with asyncio.timeout(self._wait_s):
                await waiter[2]
        except BaseException as error:
            with self._lock:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
                elif isinstance(error, TimeoutError):
                    return  # admitted at the same moment
                else:
                    self._add(-size)
            self._admit_waiting()
            if isinstance(error, TimeoutError):
                raise MemoryLimitError(
                    f"no memory for this request: it takes about {_mib(size)}, and {_mib(self._used)} of {_mib(self.total_bytes)}"
                    f" are in use: retry in {self._wait_s:g} s",
                    self._wait_s,
                ) from error
            raise

    def give(self, size: int) -> None:
        """Release reserved memory and admit waiting requests that now fit."""
        with self._lock:
            self._add(-size)
        self._admit_waiting()

    def _admit_waiting(self) -> None:
        """Admit the waiting requests that fit. Requests that already hold a body come first."""
        for budget in (self._whole or self, self.bodies):
            budget._admit_own()

    def _admit_own(self) -> None:
        with self._lock:
            while self._waiting and self._fits(self._waiting[0][0]):
                size, loop, admitted = self._waiting.popleft()
                self._add(size)
                with suppress(RuntimeError):  # the event loop is closed
                    loop.call_soon_threadsafe(_settle, admitted)

    def _is_small(self, size: int) -> bool:
        return size <= self.total_bytes // _SMALL_SHARE

    def _fits(self, size: int) -> bool:
        if self._whole is not None and self._whole._used + size > self._whole.total_bytes:
            return False
        after = self._used + size
        if self._is_small(size):
            return after <= self.total_bytes
        kept = self.total_bytes // _KEPT_SHARE
        return after <= self.total_bytes - kept or (after <= self.total_bytes and self._used <= kept)

    def _add(self, size: int) -> None:
        if self._whole is not None:
            self._whole._add(size)
        self._used += size
        self._peak = max(self._peak, self._used)


class Lease:
    """Memory reserved for one request. As a context manager, the lease releases its memory on exit.

    Memory that a thread is using stays reserved: if `close` is called during `work`, the memory is released when the thread is done.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._lock = threading.Lock()
        self._bytes = 0
        self._threads = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def bytes(self) -> int:
        """Number of bytes reserved."""
        return self._bytes

    def check(self, size: int) -> None:
        """Check a size against the total budget; see `MemoryBudget.check`."""
        self._budget.check(size)

    async def grow_to(self, size: int) -> None:
        """Grow the lease to at least `size` bytes, waiting for memory if necessary.

        Raises:
            RequestError, MemoryLimitError: see `MemoryBudget.take`.
        """
        if (more := size - self._bytes) > 0:
            await self._budget.take(more)
            self._bytes += more

    def require(self, size: int) -> None:
        """Grow the lease to at least `size` bytes without waiting. Threads use this method because they cannot wait.

        Raises:
            MemoryNeeded: not enough memory is free.
        """
        if (more := size - self._bytes) > 0:
            if not self._budget.try_take(more):
                raise MemoryNeeded(size)
            self._bytes += more

    def shrink_to(self, size: int) -> None:
        """Release all but `size` bytes of the lease."""
        if (less := self._bytes - size) > 0:
            self._bytes = size
            self._budget.give(less)

    def work(self, job: Callable[[], T]) -> T:
        """Run a job that uses the reserved memory, in the calling thread, and return its result. The memory is released afterwards."""
        with self._lock:
            self._threads += 1
        try:
            return job()
        finally:
            with self._lock:
                self._threads -= 1
            self.shrink_to(0)

    def close(self) -> None:
        """Release all memory, either now or when the thread that uses it is done."""
        with self._lock:
            busy = self._threads > 0
        if not busy:
            self.shrink_to(0)


def default_budget(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return half of the memory available to this process, which is the container's limit or, without one, the machine's memory."""
    limits = [*_cgroup_limits(proc / "self/cgroup", cgroups), _machine_bytes(proc / "meminfo")]
    return min(limit for limit in limits if limit) // 2


def _cgroup_limits(membership: Path, cgroups: Path) -> list[int]:
    """Return the memory limits in bytes of this process's cgroup and its ancestors, for cgroup version 2 or 1."""
    limits = []
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            root, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = root / path.strip("/")
        for group in [folder, *folder.parents]:  # in a container, the path may be the host's: then only the root has the limit
            try:
                text = (group / name).read_text().strip()
            except OSError:
                continue
            if text.isdecimal() and int(text) < _UNLIMITED_BYTES:
                limits.append(int(text))
            if group == root:
                break
    return limits


def _machine_bytes(meminfo: Path) -> int:
    try:
        return int(meminfo.read_text().split("MemTotal:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return 8 << 30  # not Linux


def _settle(admitted: asyncio.Future[None]) -> None:
    if not admitted.done():
        admitted.set_result(None)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
