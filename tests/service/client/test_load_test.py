"""Tests of the load test against functions with known latencies."""

from __future__ import annotations

import asyncio
import itertools
import random
import time

import numpy as np
import pytest

from tlcli.service.client.load_test import Load, measure

SERVICE_S = 0.02


def test_a_closed_loop() -> None:
    asked: list[int] = []

    async def ask(number: int) -> str:
        asked.append(number)
        await asyncio.sleep(SERVICE_S)
        return "OK"

    measured = asyncio.run(measure(ask, Load(clients=4), duration_s=1.0, warm_up_s=0.1))
    assert sorted(asked) == list(range(len(asked))), "each request has a number of its own"
    assert measured.answered < len(asked), "the warm-up is not counted"
    assert measured.codes == {"OK": measured.answered}
    assert measured.percentile_ms(50) >= 1000 * SERVICE_S
    assert measured.throughput == pytest.approx(4 / np.mean(measured.latencies_s), rel=0.1)


def test_what_is_under_way_at_the_ends_of_the_measured_time_does_not_lower_the_throughput() -> None:
    chance = random.Random(5)

    async def ask(number: int) -> str:
        await asyncio.sleep(chance.uniform(0.2, 0.3))
        return "OK"

    measured = asyncio.run(measure(ask, Load(clients=20), duration_s=1.0, warm_up_s=0.5))
    assert measured.throughput == pytest.approx(20 / np.mean(measured.latencies_s), rel=0.1)


def test_an_open_loop_does_not_wait_for_answers() -> None:
    async def ask(number: int) -> str:
        await asyncio.sleep(0.5)
        return "OK" if number % 4 else "RESOURCE_EXHAUSTED"

    began = time.perf_counter()
    measured = asyncio.run(measure(ask, Load(rate=200), duration_s=1.0, warm_up_s=0.0, seed=3))
    assert time.perf_counter() - began >= 1.4, "the last answers are waited for"
    sent = sum(measured.codes.values())
    assert abs(sent - 200) < 4 * 200**0.5, "a Poisson process of 200 a second"
    assert measured.codes["RESOURCE_EXHAUSTED"] == pytest.approx(sent / 4, abs=1)
    assert len(measured.refused_s) == measured.codes["RESOURCE_EXHAUSTED"]
    assert measured.percentile_ms(99) >= 500


def test_percentiles_are_those_of_what_was_answered() -> None:
    times = itertools.cycle([0.01] * 9 + [0.1])

    async def ask(number: int) -> str:
        await asyncio.sleep(next(times))
        return "OK"

    measured = asyncio.run(measure(ask, Load(clients=1), duration_s=1.0, warm_up_s=0.0))
    assert 10 <= measured.percentile_ms(50) < 30
    assert 100 <= measured.percentile_ms(99) < 140
    nothing = asyncio.run(measure(ask, Load(clients=1), duration_s=0.0, warm_up_s=0.0))
    assert (nothing.answered, nothing.throughput) == (0, 0.0)
    assert np.isnan(nothing.percentile_ms(50))
