"""Admission control for a model's queue. When the queue is full, requests are rejected early with a retry delay."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable

from tlcli.contract.errors import OverloadedError, RequestError

_MIN_RETRY_S = 0.01


class Admission:
    """Bounded number of slots in front of one model.

    An image holds a slot from its arrival until the model starts to run it; a Score-CAM holds one until it is done. Not thread-safe: use
    it from the event loop's thread only.
    """

    def __init__(self, name: str, slots: int, image_s: Callable[[], float], what: str = "images") -> None:
        """Create the slots.

        Args:
            name: model name shown in messages.
            slots: number of slots.
            image_s: returns the recent time per image in seconds. The retry delay is estimated from it.
            what: plural noun for the work that holds the slots, shown in messages.
        """
        self._name = name
        self._what = what
        self._slots = slots
        self._image_s = image_s
        self.used = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def acquire(self) -> Slot:
        """Take a slot without waiting.

        Raises:
            OverloadedError: all slots are in use.
        """
        if self.used >= self._slots:
            raise self._overloaded(f"{self.used} {self._what} waiting")
        self.used += 1
        return Slot(self)

    def acquire_all(self, images: int) -> list[Slot]:
        """Take a slot for each image of one request without waiting. Either all images get a slot or none does.

        Raises:
            OverloadedError: too few slots are free.
            RequestError: the request has more images than there are slots.
        """
        if images > self._slots:
            raise RequestError(
                f"{images:,} {self._what} in one request: at most {self._slots} may wait for model {self._name!r}; send several requests"
            )
        if self.used + images > self._slots:
            raise self._overloaded(f"{self.used} of {self._slots} {self._what} waiting, this request has {images}")
        self.used += images
        return [Slot(self) for _ in range(images)]

    async def acquire_in_turn(self) -> Slot:
        """Wait for a slot in first-in, first-out order.

        Streams use this method, so messages are read from a stream no faster than they are processed.
        """
        while self.used >= self._slots or self._waiting:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # the turn was granted, but its waiter was cancelled: pass it on
                    self._wake_next()
                raise
            finally:
                if turn in self._waiting:
                    self._waiting.remove(turn)
            if self.used < self._slots:
                break
        self.used += 1
        return Slot(self)

    @property
    def idle(self) -> bool:
        """Return True if no image holds a slot or waits for one."""
        return not self.used and not self._waiting

    def release(self) -> None:
        """Release one slot and wake the next waiter. Call `Slot.release` instead, which is safe to call more than once."""
        self.used -= 1
        self._wake_next()

    def _overloaded(self, load: str) -> OverloadedError:
        retry_s = max(_MIN_RETRY_S, self.used * self._image_s())
        return OverloadedError(f"queue of model {self._name!r} full ({load}): retry in {_readable(retry_s)}", retry_s)

    def _wake_next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return


class Slot:
    """Slot held by one image or one Score-CAM."""

    def __init__(self, admission: Admission) -> None:
        self._admission: Admission | None = admission

    def release(self) -> None:
        """Release the slot. Further calls have no effect."""
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.release()


def _readable(seconds: float) -> str:
    return f"{math.ceil(seconds * 1000)} ms" if seconds < 1 else f"{seconds:.1f} s"
