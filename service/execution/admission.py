"""Admission to a model's queue: when it is full, requests are refused early, with a retry delay."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable

from tlcli.contract.errors import OverloadedError, RequestError

_MIN_RETRY_S = 0.01


class Admission:
    """Bounded number of slots in front of one model.

    An image holds a slot from its arrival until the model starts on it; a Score-CAM holds one until it is done. Used from the event
    loop's thread only.
    """

    def __init__(self, name: str, slots: int, image_s: Callable[[], float], what: str = "images") -> None:
        """Create the slots.

        Args:
            name: the model's name, for messages.
            slots: how many there are.
            image_s: returns the recent time per image in seconds, from which the retry delay is estimated.
            what: plural of what holds a slot, for messages.
        """
        self._name = name
        self._what = what
        self._slots = slots
        self._image_s = image_s
        self.used = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def acquire(self) -> Slot:
        """Take a slot.

        Raises:
            OverloadedError: all slots are in use.
        """
        if self.used >= self._slots:
            raise self._overloaded(f"{self.used} {self._what} waiting")
        self.used += 1
        return Slot(self)

    def acquire_all(self, images: int) -> list[Slot]:
        """Take a slot for each image of one request, or none.

        Raises:
            OverloadedError: too few slots are free.
            RequestError: the request has more images than there are slots.
        """
        if images > self._slots:
            raise RequestError(
                f"{images:,} {self._what} in one request: at most {self._slots} may wait for model {self._name!r}, so send several"
            )
        if self.used + images > self._slots:
            raise self._overloaded(f"{self.used} of {self._slots} {self._what} waiting, this request has {images}")
        self.used += images
        return [Slot(self) for _ in range(images)]

    async def acquire_in_turn(self) -> Slot:
        """Wait for a slot, first in, first out. Streams use this: they are read no faster than they are answered."""
        while self.used >= self._slots or self._waiting:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # the turn came, but its owner has left
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
        """Return a slot; see `Slot.release`."""
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
    """Slot of one image."""

    def __init__(self, admission: Admission) -> None:
        self._admission: Admission | None = admission

    def release(self) -> None:
        """Return the slot; further calls do nothing."""
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.release()


def _readable(seconds: float) -> str:
    return f"{math.ceil(seconds * 1000)} ms" if seconds < 1 else f"{seconds:.1f} s"
