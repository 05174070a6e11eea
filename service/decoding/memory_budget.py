"""Budget of the memory that all requests take together: for bodies, decoded images, drawings, and runs on other image sizes."""

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
"""Seconds that a request waits for memory before it is refused."""

_SMALL_SHARE = 64
_KEPT_SHARE = 4
"""Divisors of the budget. A request of more than a 64th of it is large, and large requests leave a quarter of it to the others."""

_BODIES_SHARE = 2
_UNLIMITED_BYTES = 1 << 60


class MemoryNeeded(Exception):  # noqa: N818  # no failure: it is caught, and the work starts again
    """Signal of a thread that it needs `bytes` of memory, for which the event loop waits."""

    def __init__(self, needed_bytes: int) -> None:
        super().__init__(needed_bytes)
        self.bytes = needed_bytes


class MemoryBudget:
    """Count of the memory in use, with a limit. Waiting happens in the event loop; `try_take` and `give` may be called from any thread.

    bodies: the share for request bodies. Requests that hold a body wait for memory to work on it, so bodies must never take all of it.
    """

    def __init__(self, total_bytes: int, wait_s: float = WAIT_S, whole: MemoryBudget | None = None) -> None:
        """Create a budget of which nothing is used.

        Args:
            total_bytes: size of the budget.
            wait_s: seconds that `take` waits for memory.
            whole: the budget of which this one is a share; None for a budget of its own.
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
        """Return the number of bytes in use."""
        return self._used

    def take_peak(self) -> int:
        """Return the largest number of bytes in use at a time since the last call."""
        with self._lock:
            peak, self._peak = self._peak, self._used
            return peak

    def lease(self) -> Lease:
        """Return a new, empty lease for one request."""
        return Lease(self)

    def try_take(self, size: int) -> bool:
        """Take memory if it is free and no request waits for it."""
        with self._lock:
            if (self._waiting and not self._is_small(size)) or not self._fits(size):
                return False
            self._add(size)
            return True

    def check(self, size: int) -> None:
        """Check that a size does not exceed the whole budget.

        Raises:
            RequestError: it does.
        """
        if size > self.total_bytes:
            raise RequestError(
                f"the request takes about {_mib(size)} of memory, and the server's budget is {_mib(self.total_bytes)}:"
                " send a smaller image or fewer at a time, or raise the server's max_memory_bytes"
            )

    async def take(self, size: int) -> None:
        """Take memory, after the requests that already wait.

        Raises:
            RequestError: the size exceeds the whole budget.
            MemoryLimitError: the memory did not become free in time.
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
        """Return memory."""
        with self._lock:
            self._add(-size)
        self._admit_waiting()

    def _admit_waiting(self) -> None:
        """Admit waiting requests: first those that already hold a body."""
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
    """Share of one request in the budget; as a context manager, it is returned at the end.

    A thread that works with the memory keeps it: if `close` is called during `work`, the memory is returned when the thread is done.
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
        """Return the number of bytes held."""
        return self._bytes

    def check(self, size: int) -> None:
        """Check a size against the whole budget; see `MemoryBudget.check`."""
        self._budget.check(size)

    async def grow_to(self, size: int) -> None:
        """Grow to at least `size` bytes; wait for them if necessary.

        Raises:
            RequestError, MemoryLimitError: see `MemoryBudget.take`.
        """
        if (more := size - self._bytes) > 0:
            await self._budget.take(more)
            self._bytes += more

    def require(self, size: int) -> None:
        """Grow to at least `size` bytes, from a thread, which cannot wait.

        Raises:
            MemoryNeeded: the memory is not free.
        """
        if (more := size - self._bytes) > 0:
            if not self._budget.try_take(more):
                raise MemoryNeeded(size)
            self._bytes += more

    def shrink_to(self, size: int) -> None:
        """Return all but `size` bytes."""
        if (less := self._bytes - size) > 0:
            self._bytes = size
            self._budget.give(less)

    def work(self, job: Callable[[], T]) -> T:
        """Call a job in a thread that uses the memory, and return the memory afterwards."""
        with self._lock:
            self._threads += 1
        try:
            return job()
        finally:
            with self._lock:
                self._threads -= 1
            self.shrink_to(0)

    def close(self) -> None:
        """Return all memory, now or when the thread that works with it is done."""
        with self._lock:
            busy = self._threads > 0
        if not busy:
            self.shrink_to(0)


def default_budget(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return half of the memory that this process may use: of its container's limit, or of the machine's memory without one."""
    limits = [*_cgroup_limits(proc / "self/cgroup", cgroups), _machine_bytes(proc / "meminfo")]
    return min(limit for limit in limits if limit) // 2


def _cgroup_limits(membership: Path, cgroups: Path) -> list[int]:
    """Return every limit from this process's control group up to the root, of version 2 or 1."""
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
        for group in [folder, *folder.parents]:  # in a container, the path may be the host's: then the root's own file has the limit
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
