"""Load test of a running server in a closed or open loop. It measures throughput, latencies, and errors by status code."""

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
"""Function that sends the request with a given number and returns the name of its status code."""


@dataclass(frozen=True)
class Load:
    """Load on a server. Set either `clients` or `rate`.

    clients: number of clients that each send one request after another (closed loop).
    rate: requests per second, Poisson arrivals (open loop).
    """

    clients: int = 0
    rate: float = 0.0


@dataclass
class Measured:
    """Results of the requests sent during the measurement.

    seconds: duration of the measurement.
    completed: number of responses received during the measurement. Responses to earlier requests are included, because about as many
        requests are in flight at its start as at its end.
    latencies_s: latencies of the successful requests, in seconds.
    codes: number of requests by status code.
    refused_s: latencies of the rejected or failed requests, in seconds.
    """

    load: Load
    seconds: float
    completed: int = 0
    latencies_s: list[float] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)
    refused_s: list[float] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """Number of successful requests."""
        return len(self.latencies_s)

    @property
    def throughput(self) -> float:
        """Successful responses per second."""
        return self.completed / self.seconds if self.seconds else 0.0

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the latencies in milliseconds, or NaN if no request succeeded."""
        return float(np.percentile(self.latencies_s, percent)) * 1000 if self.latencies_s else float("nan")


class Target:
    """`Classify` method of a server, called with pre-encoded messages to keep the cost in the load generator low.

    Use it as an asynchronous context manager in one event loop.
    """

    def __init__(
        self,
        channel: Callable[[], grpc.aio.Channel],
        messages: Sequence[bytes],
        timeout_s: float | None = 30.0,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Create a target; its connections open when the context is entered.

        Args:
            channel: function that opens a connection.
            messages: serialized `ClassifyRequest` messages, sent in turn.
            timeout_s: time limit for each call in seconds; None for no limit.
            metadata: metadata sent with each call.
        """
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
    """Apply a load to a server and measure the requests sent after the warm-up. Return after the last response.

    Args:
        ask: function that sends a request and returns the name of its status code, such as the one that `Target` provides.
        load: closed or open loop.
        duration_s: duration of the measurement in seconds.
        warm_up_s: seconds for which requests are sent before the measurement.
        seed: random seed of the open loop's arrivals.
    """
    measured = Measured(load, duration_s)
    numbers = itertools.count()
    begin = time.perf_counter() + warm_up_s
    end = begin + duration_s

    async def send() -> None:
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
            await send()

    if load.clients:
        await asyncio.gather(*(client() for _ in range(load.clients)))
    else:
        await _poisson(send, load.rate, end, random.Random(seed))
    return measured


async def _poisson(send: Callable[[], Awaitable[None]], rate: float, end: float, arrivals: random.Random) -> None:
    in_flight: set[asyncio.Future[None]] = set()
    due = time.perf_counter()
    while due < end:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.ensure_future(send())
        in_flight.add(task)
        task.add_done_callback(in_flight.discard)
        due += arrivals.expovariate(rate)
    await asyncio.gather(*in_flight)
