"""A load on a running server, and what it makes of it: closed loops, open loops, latencies, errors by code."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import grpc.aio
import numpy as np

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)

_CONNECTIONS = 4
_CLASSIFY = "/tlcli.v1.Classifier/Classify"

Ask = Callable[[int], Awaitable[str]]
"""Send the request of a number, and tell the status code's name."""


@dataclass(frozen=True)
class Load:
    """clients: that ask one request after another (a closed loop), or
    rate: requests a second that come by chance, whether others are answered or not (an open loop, a Poisson process).
    """

    clients: int = 0
    rate: float = 0.0


@dataclass
class Measured:
    """What happened to the requests that were sent within the measured time.

    seconds: of that time.
    completed: answers that came within it, also to what was sent before: as many are under way at its beginning as at its end.
    latencies_s: of those that were answered.
    codes: how many ended with each status code.
    refused_s: how long those took that were not answered.
    """

    load: Load
    seconds: float
    completed: int = 0
    latencies_s: list[float] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)
    refused_s: list[float] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """How many."""
        return len(self.latencies_s)

    @property
    def throughput(self) -> float:
        """Answers a second."""
        return self.completed / self.seconds if self.seconds else 0.0

    def percentile_ms(self, percent: float) -> float:
        """Of the latencies; NaN without any."""
        return float(np.percentile(self.latencies_s, percent)) * 1000 if self.latencies_s else float("nan")


class Target:
    """A server's `Classify`, to be asked with messages that were made before: the caller should cost as little as it can.

    Use in one event loop, as `async with`.
    """

    def __init__(
        self,
        channel: Callable[[], grpc.aio.Channel],
        messages: Sequence[bytes],
        timeout_s: float | None = 30.0,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        """channel: makes a connection. messages: serialized `ClassifyRequest`s, sent in turn, with `metadata`."""
        self._channel = channel
        self._messages = messages
        self._timeout_s = timeout_s
        self._metadata = tuple(metadata)
        self._channels: list[grpc.aio.Channel] = []

    async def __aenter__(self) -> Ask:
        self._channels = [self._channel() for _ in range(_CONNECTIONS)]
        calls = [channel.unary_unary(_CLASSIFY, None, None) for channel in self._channels]

        async def ask(number: int) -> str:
            try:
                message = self._messages[number % len(self._messages)]
                await calls[number % len(calls)](message, timeout=self._timeout_s, metadata=self._metadata)
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return "OK"

        return ask

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            await channel.close(None)


async def measure(ask: Ask, load: Load, duration_s: float, warm_up_s: float = 1.0, seed: int = 0) -> Measured:
    """Put a load on a server, and look at what is sent after the warm-up; waits for the last answer.

    Args:
        ask: see `Target`; or anything else that takes a number and tells a status code's name.
        load: either kind.
        duration_s: of sending.
        warm_up_s: of sending before that, not counted.
        seed: of the open loop's arrivals.
    """
    measured = Measured(load, duration_s)
    numbers = itertools.count()
    begin = time.perf_counter() + warm_up_s
    end = begin + duration_s

    async def one() -> None:
        sent = time.perf_counter()
        code = await ask(next(numbers))
        done = time.perf_counter()
        if code == "OK" and begin <= done < end:
            measured.completed += 1
        if begin <= sent < end:
            measured.codes[code] += 1
            (measured.latencies_s if code == "OK" else measured.refused_s).append(done - sent)

    async def client() -> None:
        while time.perf_counter() < end:
            await one()

    if load.clients:
        await asyncio.gather(*(client() for _ in range(load.clients)))
    else:
        await _poisson(one, load.rate, end, random.Random(seed))
    return measured


async def _poisson(one: Callable[[], Awaitable[None]], rate: float, end: float, chance: random.Random) -> None:
    under_way: set[asyncio.Future[None]] = set()
    due = time.perf_counter()
    while due < end:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.ensure_future(one())
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        due += chance.expovariate(rate)
    await asyncio.gather(*under_way)
