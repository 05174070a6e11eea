"""Tests of the thread pool: timing of jobs, and cancelled jobs that never start."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tlcli.service.system.thread_pool import Workers


def test_waiting_and_working_are_told_apart() -> None:
    async def main() -> None:
        workers = Workers(1, "test")
        gate = threading.Event()
        first = asyncio.create_task(workers.do(gate.wait))
        second = asyncio.create_task(workers.do(lambda: "done"))
        await asyncio.sleep(0.05)
        gate.set()
        assert (await first).took_ns > 40e6
        timed = await second
        assert timed.value == "done"
        assert timed.waited_ns > 40e6
        assert timed.took_ns < timed.waited_ns
        workers.close()

    asyncio.run(main())


def test_a_job_cancelled_while_it_waits_is_never_begun() -> None:
    begun = []

    async def main() -> None:
        workers = Workers(1, "test")
        gate = threading.Event()
        first = asyncio.create_task(workers.do(gate.wait))
        second = asyncio.create_task(workers.do(begun.append, 2))
        await asyncio.sleep(0.01)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.set()
        await first
        assert (await workers.do(begun.append, 3)).value is None
        workers.close()

    asyncio.run(main())
    assert begun == [3]


def test_what_a_job_raises_comes_out() -> None:
    async def main() -> None:
        workers = Workers(1, "test")
        with pytest.raises(ZeroDivisionError):
            await workers.do(lambda: 1 / 0)
        workers.close()

    asyncio.run(main())
