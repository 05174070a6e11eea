"""Bound on the images that wait for a model: others are refused before they cost anything, with a retry delay."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable

from tlcli.contract.errors import OverloadedError, RequestError

_LEAST_RETRY_S = 0.01


class Admission:
    """The places in front of one model. An image has one from its arrival until the model begins with it; a Score-CAM until it is done.

    Used from the event loop's thread only.
    """

    def __init__(self, name: str, places: int, image_s: Callable[[], float], what: str = "images") -> None:
        """name: the model's. image_s: what an image took of late, for the advice when to ask again. what: has the places."""
        self._name = name
        self._what = what
        self._places = places
        self._image_s = image_s
        self.taken = 0
        self._patient: deque[asyncio.Future[None]] = deque()

    def enter(self) -> Place:
        """Take a place.

        Raises:
            OverloadedError: all are taken.
        """
        if self.taken >= self._places:
            raise self._overloaded("as many as may")
        self.taken += 1
        return Place(self)

    def enter_all(self, images: int) -> list[Place]:
        """Take a place for each image of one request, or none.

        Raises:
            OverloadedError: too few are free.
            RequestError: too few would be, if nobody else waited.
        """
        if images > self._places:
            raise RequestError(
                f"{images:,} {self._what} came in one request, and at most {self._places} may wait for model {self._name!r}:"
                " send several requests"
            )
        if self.taken + images > self._places:
            raise self._overloaded(f"of {self._places} that may, and this request has {images}")
        self.taken += images
        return [Place(self) for _ in range(images)]

    async def enter_in_turn(self) -> Place:
        """Take a place as soon as there is one: for streams, which are read no faster than they are answered."""
        while self.taken >= self._places or self._patient:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._patient.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # called, and gone
                    self._call_next()
                raise
            finally:
                if turn in self._patient:
                    self._patient.remove(turn)
            if self.taken < self._places:
                break
        self.taken += 1
        return Place(self)

    @property
    def idle(self) -> bool:
        """Whether no image waits, in a place or for one."""
        return not self.taken and not self._patient

    def leave(self) -> None:
        """Give a place back; see `Place.leave`."""
        self.taken -= 1
        self._call_next()

    def _overloaded(self, how_full: str) -> OverloadedError:
        retry_s = max(_LEAST_RETRY_S, self.taken * self._image_s())
        return OverloadedError(
            f"model {self._name!r} is busy: {self.taken} {self._what} wait for it, {how_full}: ask again in {_readable(retry_s)}", retry_s
        )

    def _call_next(self) -> None:
        while self._patient:
            turn = self._patient.popleft()
            if not turn.done():
                turn.set_result(None)
                return


class Place:
    """One image's place."""

    def __init__(self, admission: Admission) -> None:
        self._admission: Admission | None = admission

    def leave(self) -> None:
        """Give it back, if that has not happened."""
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.leave()


def _readable(seconds: float) -> str:
    return f"{math.ceil(seconds * 1000)} ms" if seconds < 1 else f"{seconds:.1f} s"
