"""Memory budget of requests: which are admitted, which wait, which are refused; and the limit of a container."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from tlcli.contract.errors import MemoryLimitError, RequestError
from tlcli.service.decoding.memory_budget import MemoryBudget, MemoryNeeded, default_budget

TOTAL = 6400


def test_requests_wait_in_order_for_memory() -> None:
    async def main() -> list[str]:
        budget, order = MemoryBudget(TOTAL), []

        async def ask(name: str, size: int) -> None:
            with budget.lease() as lease:
                await lease.grow_to(size)
                order.append(name)
                await asyncio.sleep(0.01)

        await asyncio.gather(ask("first", 4000), ask("second", 4500), ask("third", 4000))
        assert budget.used_bytes == 0
        return order

    assert asyncio.run(main()) == ["first", "second", "third"]


def test_a_request_that_waits_too_long_is_refused_with_a_retry_delay() -> None:
    async def main() -> None:
        budget = MemoryBudget(TOTAL, wait_s=0.05)
        await budget.take(4000)
        with pytest.raises(MemoryLimitError, match=r"no memory for this request.*retry in 0\.05 s") as refused:
            await budget.take(4000)
        assert refused.value.retry_s == 0.05
        assert budget.used_bytes == 4000

    asyncio.run(main())


def test_a_request_larger_than_the_budget_is_refused_for_good() -> None:
    with pytest.raises(RequestError, match="max_memory_bytes"):
        asyncio.run(MemoryBudget(TOTAL).take(TOTAL + 1))


def test_large_requests_leave_memory_to_small_ones() -> None:
    budget = MemoryBudget(TOTAL)
    assert budget.try_take(4000)
    assert not budget.try_take(1000)
    assert all(budget.try_take(100) for _ in range(24))
    assert not budget.try_take(100)


def test_a_cancelled_request_takes_no_memory() -> None:
    async def main() -> int:
        budget = MemoryBudget(TOTAL)
        await budget.take(4000)
        waiting = asyncio.create_task(budget.take(4000))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        budget.give(4000)
        return budget.used_bytes

    assert asyncio.run(main()) == 0


def test_a_thread_keeps_its_memory_until_it_is_done() -> None:
    budget = MemoryBudget(TOTAL)
    begun, go = threading.Event(), threading.Event()
    lease = budget.lease()

    def decode() -> None:
        lease.require(4000)
        begun.set()
        assert go.wait(20)

    thread = threading.Thread(target=lease.work, args=[decode])
    thread.start()
    assert begun.wait(20)
    lease.close()  # its client has left
    assert budget.used_bytes == 4000
    go.set()
    thread.join()
    assert budget.used_bytes == 0


def test_bodies_leave_half_of_the_memory_for_work() -> None:
    async def main() -> None:
        budget = MemoryBudget(TOTAL, wait_s=0.05)
        await budget.bodies.take(1600)
        await budget.bodies.take(800)
        with pytest.raises(MemoryLimitError):
            await budget.bodies.take(1600)
        assert budget.used_bytes == 2400
        waiting = asyncio.create_task(budget.bodies.take(700))
        assert budget.try_take(2400)
        budget.bodies.give(800)
        await waiting
        assert budget.used_bytes == 1600 + 2400 + 700

    asyncio.run(main())


def test_a_thread_does_not_wait_for_memory() -> None:
    budget = MemoryBudget(TOTAL)
    assert budget.try_take(4000)
    with pytest.raises(MemoryNeeded):
        budget.lease().require(3000)


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        pytest.param("0::/a/b", {"a/memory.max": "2000", "a/b/memory.max": "max"}, 1000, id="version 2, the parent's limit"),
        pytest.param("0::/host/path", {"memory.max": "3000"}, 1500, id="version 2, in a container"),
        pytest.param("5:cpu,memory:/a", {"memory/a/memory.limit_in_bytes": "4000"}, 2000, id="version 1"),
        pytest.param("5:memory:/a", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, 8192 * 1024 // 2, id="no limit"),
        pytest.param("0::/", {}, 8192 * 1024 // 2, id="no files"),
    ],
)
def test_the_default_is_half_of_the_containers_limit(tmp_path: Path, membership: str, files: dict[str, str], expected: int) -> None:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text(f"{membership}\n")
    (proc / "meminfo").write_text("MemTotal:        8192 kB\nMemFree: 1 kB\n")
    for name, text in files.items():
        (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroups / name).write_text(text)
    assert default_budget(proc, cgroups) == expected
