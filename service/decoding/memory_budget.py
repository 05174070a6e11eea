"""The memory that requests may take together: bodies, decoded images, drawings and runs of odd sizes are admitted from one budget."""

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
"""A request that takes more than a 64th of the budget is large; large ones leave a quarter of it to the others."""

_BODIES_SHARE = 2
_UNLIMITED_BYTES = 1 << 60


class MemoryNeeded(Exception):  # noqa: N818  # no failure: it is caught, and the work begun again
    """Work that cannot go on now: `bytes` must be admitted first, by one who can wait."""

    def __init__(self, needed_bytes: int) -> None:
        super().__init__(needed_bytes)
        self.bytes = needed_bytes


class MemoryBudget:
    """Counts what requests take. Waiting belongs to the event loop; taking and giving back may be done from any thread.

    bodies: the share of it for what comes in. Requests that hold a body wait for the memory to work on it, so bodies must never take all.
    """

    def __init__(self, total_bytes: int, wait_s: float = WAIT_S, whole: MemoryBudget | None = None) -> None:
        """whole: that this one is a share of."""
        self.total_bytes = total_bytes
        self._wait_s = wait_s
        self._whole = whole
        self._lock: threading.RLock = threading.RLock() if whole is None else whole._lock
        self._used = self._peak = 0
        self.bodies = MemoryBudget(total_bytes // _BODIES_SHARE, wait_s, self) if whole is None else self
        self._waiting: deque[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()

    @property
    def used_bytes(self) -> int:
        """Bytes in use."""
        return self._used

    def take_peak(self) -> int:
        """Return the most that was taken at a time since the last call."""
        with self._lock:
            peak, self._peak = self._peak, self._used
            return peak

    def lease(self) -> Lease:
        """A request's share, empty at first."""
        return Lease(self)

    def try_take(self, size: int) -> bool:
        """Take memory if it is free and nobody waits for it."""
        with self._lock:
            if (self._waiting and not self._is_small(size)) or not self._fits(size):
                return False
            self._add(size)
            return True

    def check(self, size: int) -> None:
        """Raises: RequestError: more than the whole budget."""
        if size > self.total_bytes:
            raise RequestError(
                f"the request takes about {_mib(size)} of memory, this server gives at most {_mib(self.total_bytes)}:"
                " send a smaller image or less at a time, or start the server with more (max_memory_bytes)"
            )

    async def take(self, size: int) -> None:
        """Take memory, after those who already wait.

        Raises:
            RequestError: more than the whole budget.
            MemoryLimitError: it did not become free in time.
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
                    return  # admitted in the same moment
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
        """Give memory back."""
        with self._lock:
            self._add(-size)
        self._admit_waiting()

    def _admit_waiting(self) -> None:
        """Admit who waits: first those who hold a body already."""
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
    """Share of one request in the budget; as a context manager, returned at the end.

    A thread that works with the memory holds on to it: while it does `work`, `close` takes effect when the thread is done.
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
        """Bytes that it holds."""
        return self._bytes

    def check(self, size: int) -> None:
        """See `MemoryBudget.check`."""
        self._budget.check(size)

    async def grow_to(self, size: int) -> None:
        """Have at least so much, waiting for it if need be.

        Raises:
            RequestError, MemoryLimitError: see `MemoryBudget.take`.
        """
        if (more := size - self._bytes) > 0:
            await self._budget.take(more)
            self._bytes += more

    def require(self, size: int) -> None:
        """Have at least so much, from a thread, which cannot wait.

        Raises:
            MemoryNeeded: it is not free.
        """
        if (more := size - self._bytes) > 0:
            if not self._budget.try_take(more):
                raise MemoryNeeded(size)
            self._bytes += more

    def shrink_to(self, size: int) -> None:
        """Give back all but so much."""
        if (less := self._bytes - size) > 0:
            self._bytes = size
            self._budget.give(less)

    def work(self, job: Callable[[], T]) -> T:
        """Do a job in a thread with the memory, and give it back then."""
        with self._lock:
            self._threads += 1
        try:
            return job()
        finally:
            with self._lock:
                self._threads -= 1
            self.shrink_to(0)

    def close(self) -> None:
        """Give everything back, now or when the thread that works with it is done."""
        with self._lock:
            busy = self._threads > 0
        if not busy:
            self.shrink_to(0)


def default_budget(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return half of the memory that this process may use: its container's, or the machine's where no container limits it."""
    limits = [*_cgroup_limits(proc / "self/cgroup", cgroups), _machine_bytes(proc / "meminfo")]
    return min(limit for limit in limits if limit) // 2


def _cgroup_limits(membership: Path, cgroups: Path) -> list[int]:
    """Every limit on the way from this process's control group to the root, of version 2 or 1."""
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
        for place in [folder, *folder.parents]:  # in a container, the path may be the host's: then the root's own file tells
            try:
                text = (place / name).read_text().strip()
            except OSError:
                continue
            if text.isdecimal() and int(text) < _UNLIMITED_BYTES:
                limits.append(int(text))
            if place == root:
                break
    return limits


def _machine_bytes(meminfo: Path) -> int:
    try:
        return int(meminfo.read_text().split("MemTotal:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return 8 << 30  # another system than Linux


def _settle(admitted: asyncio.Future[None]) -> None:
    if not admitted.done():
        admitted.set_result(None)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
