"""Turns of requests that take many runs of a model (Score-CAM) among those that take one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

_SHARE = 4
"""Share of a busy model's time that Score-CAMs get, as one in this many seconds: less would starve them, more would slow others down."""

_COMPANY_S = 60.0
"""After a request that takes one run, others like it are expected for so long, and a Score-CAM takes small steps."""


class Turns:
    """Who may run a model next: Score-CAMs one after another, the oldest first, each step while no other request is under way.

    Where others are always under way, a step follows when they have had `_SHARE - 1` times what the last one took.
    Used from the event loop's thread only.
    """

    def __init__(self) -> None:
        self._oldest = asyncio.Lock()  # asyncio's locks are first in, first out
        self._alone = asyncio.Event()
        self._alone.set()
        self._others = 0
        self._last_other = -_COMPANY_S
        self.long_s = 0.0
        """Recent duration of a Score-CAM in seconds."""

    @contextmanager
    def short(self) -> Iterator[None]:
        """Count a request that takes one run, from its decoding to its answer."""
        self._others += 1
        self._last_other = time.monotonic()
        self._alone.clear()
        try:
            yield
        finally:
            self._others -= 1
            if not self._others:
                self._alone.set()

    @asynccontextmanager
    async def long(self) -> AsyncIterator[None]:
        """Wait for the Score-CAMs that came before, and keep later ones waiting."""
        async with self._oldest:
            begun = time.monotonic()
            yield
            latest = time.monotonic() - begun
            self.long_s += (latest - self.long_s) / 4 if self.long_s else latest

    async def step(self, last_ns: int) -> None:
        """Wait until a Score-CAM may take its next step. last_ns: what its last step took; 0 before the first."""
        if not self._alone.is_set():
            try:
                async with asyncio.timeout((_SHARE - 1) * last_ns / 1e9):
                    await self._alone.wait()
            except TimeoutError:
                return

    @property
    def alone(self) -> bool:
        """True where no request that takes one run is under way; may be asked from any thread."""
        return not self._others

    @property
    def in_company(self) -> bool:
        """True where requests that take one run are under way, or came a short while ago."""
        return self._others > 0 or time.monotonic() - self._last_other < _COMPANY_S
