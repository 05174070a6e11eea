"""Tests of ordered streams: order of the results, bounded concurrency, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from tlcli.service.system.ordered_stream import in_order


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


class Work:
    """Work whose duration depends on the number; it fails for 13."""

    def __init__(self) -> None:
        self.under_way = 0
        self.most = 0
        self.begun = 0

    async def __call__(self, number: int) -> int:
        self.begun += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            if number == 13:
                raise ValueError("13")
            for _ in range(5 * (7 * number % 5)):
                await asyncio.sleep(0)
            return number
        finally:
            self.under_way -= 1


def test_results_come_in_the_order_of_the_items_and_only_so_many_are_under_way() -> None:
    work = Work()

    async def main() -> list[int]:
        return [result async for result in in_order(numbers(12), work, limit=3)]

    assert asyncio.run(main()) == list(range(12))
    assert work.most == 3


def test_a_reader_who_takes_nothing_stops_the_reading() -> None:
    work = Work()

    async def main() -> None:
        async with aclosing(in_order(numbers(12), work, limit=3)) as results:
            assert await anext(results) == 0
            await asyncio.sleep(0.02)
            assert work.begun == 3
        await asyncio.sleep(0)

    asyncio.run(main())


def test_an_item_that_waits_for_the_answer_before_it_gets_it() -> None:
    async def main() -> list[int]:
        answered = asyncio.Event()
        results: list[int] = []

        async def asking() -> AsyncIterator[int]:
            yield 1
            await answered.wait()
            yield 2

        async for result in in_order(asking(), Work(), limit=8):
            results.append(result)
            answered.set()
        return results

    assert asyncio.run(asyncio.wait_for(main(), 10)) == [1, 2]


def test_closed_early_it_cancels_what_is_under_way() -> None:
    cancelled = []

    async def endless(number: int) -> int:
        if number == 0:
            return number
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return number

    async def main() -> None:
        async with aclosing(in_order(numbers(12), endless, limit=3)) as results:
            assert await anext(results) == 0
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert sorted(cancelled) == [1, 2]


def test_errors_of_the_work_and_of_the_items_come_out() -> None:
    async def fails(message: str) -> AsyncIterator[int]:
        yield 0
        raise ValueError(message)

    async def drain(items: AsyncIterator[int]) -> None:
        async for _ in in_order(items, Work(), limit=3):
            pass

    with pytest.raises(ValueError, match="13"):
        asyncio.run(drain(numbers(20)))
    with pytest.raises(ValueError, match="the items"):
        asyncio.run(drain(fails("the items")))
