"""Requests that wait for one model, gathered into batches.

While one batch runs the next one gathers, so a busy server batches by itself and an idle one answers at once. `Batching.delay_s` holds
a batch back for company even so, which pays where a batch costs hardly more than a single image: on a GPU.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import ServerError
from tlcli.contract.images.network_input import NetworkInput
from tlcli.contract.model.onnx_model import FIRST_RANKED, Answer
from tlcli.service.system.thread_pool import Timed, Workers

T = TypeVar("T")

Images = npt.NDArray[np.uint8]
Targets = npt.NDArray[np.int64]
Run = Callable[[Images, Targets, tuple[str, ...], bool], Answer]
"""Images `[N, H, W, 3]`, classes `[N, K]`, maps by name, softmax or logits; see `tlcli.contract.model.onnx_model.Model.run`."""


@dataclass(frozen=True)
class Wanted:
    """What a request wants of a run.

    targets: classes to explain, by id or rank; at least one.
    methods: the maps, by name; none: scores alone.
    softmax: explain probabilities, not logits.
    max_channels: of a Score-CAM.
    """

    targets: tuple[int, ...] = (FIRST_RANKED,)
    methods: tuple[str, ...] = ()
    softmax: bool = False
    max_channels: int | None = None

    @property
    def kind(self) -> _Kind | None:
        """What images of one run must have in common; None for those without maps."""
        return (self.methods, self.softmax, len(self.targets)) if self.methods else None


_Kind = tuple[tuple[str, ...], bool, int]


@dataclass(frozen=True)
class Batching:
    """max_size: images in one run. delay_s: how long the first of them waits for others while the model is idle."""

    max_size: int = 8
    delay_s: float = 0.0


@dataclass(frozen=True)
class Sharing:
    """When images that want no map run along with some that do: where their maps cost less than a run of their own.

    methods: the maps that this was measured for; others are not shared.
    run_s: what a run costs, whatever is in it.
    map_s: what an image's map costs.
    """

    methods: frozenset[str] = frozenset()
    run_s: float = 0.0
    map_s: float = 0.0

    def pays(self, kind: _Kind, images: int) -> bool:
        """Whether so many images without maps should ride along with those of `kind`."""
        methods, _, classes = kind
        return self.methods.issuperset(methods) and images * len(methods) * classes * self.map_s < self.run_s


@dataclass(eq=False)
class _Item:
    images: Images
    wanted: Wanted
    on_turn: Callable[[], None]
    answered: asyncio.Future[Timed[Answer]]
    asked_ns: int = field(default_factory=time.monotonic_ns)


class Batcher:
    """The queue before one model, first in, first out, but for those that may share a run with an earlier one.

    `submit` and `see_and_submit` belong to the event loop's thread. Batches are formed and run in the model's, and where any
    thread may run it, also in the one that has just decoded an image, if the model is free: no thread then waits for another.
    """

    def __init__(
        self,
        thread: Workers,
        run: Run,
        batching: Batching,
        sharing: Sharing,
        *,
        any_thread: bool = False,
        on_batch: Callable[[int], None] = lambda images: None,
    ) -> None:
        """any_thread: may call `run`, one at a time. on_batch: called there with the number of images in each run that was no failure."""
        self._thread = thread
        self._run = run
        self._any_thread = any_thread
        self._on_batch = on_batch
        self._batching = batching
        self._sharing = sharing
        self._model = threading.Lock()  # held while the model runs, in whichever thread
        self._lock = threading.Lock()  # guards the three below
        self._waiting: deque[_Item] = deque()
        self._running = False
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.image_s = 0.0
        """What an image took of late, for those who estimate how long a queue is."""

    async def submit(self, images: Images, wanted: Wanted, on_turn: Callable[[], None] = lambda: None) -> Timed[Answer]:
        """Run images, with others. Cancelled before its turn, it is not run.

        Args:
            images: `[n, H, W, 3]`, n at most the batch's size, fit for the model.
            wanted: fit for the model.
            on_turn: called in the event loop when the run begins.

        Raises:
            ServerError: closed meanwhile.
            Exception: what the run raises for these images alone.
        """
        answered: asyncio.Future[Timed[Answer]] = self._loop.create_future()
        if self._join(_Item(images, wanted, on_turn, answered)):
            self._begin()
        return await answered

    async def see_and_submit(
        self, see: Callable[[], NetworkInput], workers: Workers, wanted: Wanted, on_turn: Callable[[], None] = lambda: None
    ) -> tuple[Timed[NetworkInput], Timed[Answer]]:
        """Decode an image in one of `workers`, which puts it in the queue itself, and run it, with others.

        Cancelled before its turn in either, it is not decoded, or not run.

        Args:
            see: its input is fit for the model.
            workers: that decode.
            wanted, on_turn: see `submit`.

        Raises:
            ServerError: closed meanwhile.
            Exception: what `see` raises, or the run for this image alone.
        """
        asked_ns = time.monotonic_ns()
        answered: asyncio.Future[Timed[Answer]] = self._loop.create_future()
        seen: list[Timed[NetworkInput]] = []

        def see_and_join() -> None:
            if answered.done():
                return
            begun_ns = time.monotonic_ns()
            try:
                value = see()
                seen.append(Timed(value, begun_ns - asked_ns, time.monotonic_ns() - begun_ns))
                begins = self._join(_Item(value.images, wanted, on_turn, answered))
            except Exception as error:  # noqa: BLE001  # whatever it is, it is this image's
                self._tell(partial(_settle, answered, error))
                return
            if begins:
                self._begin_here()

        workers.start(see_and_join)
        ran = await answered
        return seen[0], ran

    def close(self) -> None:
        """Refuse what waits; what runs is answered."""
        with self._lock:
            self._closed = True
            left = [*self._waiting]
            self._waiting.clear()
        for item in left:
            self._tell(partial(_settle, item.answered, _closed()))

    def wait(self) -> None:
        """Until what runs is done, in whichever thread."""
        with self._model:
            pass

    def alone(self, job: Callable[[], T]) -> T:
        """Do in the model's thread what runs the model without the queue, while nobody else does."""
        with self._model:
            return job()

    def _join(self, item: _Item) -> bool:
        """Take a place at the end of the queue, from any thread; whether the caller must begin a run.

        Raises:
            ServerError: closed.
        """
        with self._lock:
            if self._closed:
                raise _closed()
            self._waiting.append(item)
            begins, idle = self._claim(), not self._running
        if idle:
            self._tell(self._wake)  # it waits for company: the event loop has the clock
        return begins

    def _claim(self) -> bool:
        """Whether a run is due, which the caller then must begin. Under the lock."""
        if self._running or not self._waiting or self._due_s() > 0:
            return False
        self._running = True
        return True

    def _wake(self) -> None:
        """Begin a run, now or when the first that waits has waited long enough; in the event loop."""
        with self._lock:
            begins = self._claim()
            due_s = self._due_s() if self._waiting and not self._running else 0.0
        if begins:
            self._begin()
        elif due_s > 0 and (self._timer is None or self._timer.when() <= self._loop.time()):
            self._timer = self._loop.call_later(due_s, self._wake)

    def _begin(self) -> None:
        with suppress(RuntimeError):  # the thread is gone: closed, and those that waited know
            self._thread.start(self._turn)

    def _due_s(self) -> float:
        """In so many seconds a run should begin: at once, if a batch is full. Under the lock."""
        if not self._batching.delay_s or sum(len(item.images) for item in self._waiting) >= self._batching.max_size:
            return 0.0
        return self._batching.delay_s - (time.monotonic_ns() - self._waiting[0].asked_ns) / 1e9

    def _begin_here(self) -> None:
        """Begin a run in the caller's thread, or in the model's where it must be that one or does something else."""
        if not self._any_thread or not self._model.acquire(blocking=False):
            self._begin()
            return
        try:
            self._run_batch()
        finally:
            self._model.release()
        self._go_on()

    def _turn(self) -> None:
        with self._model:
            self._run_batch()
        self._go_on()

    def _run_batch(self) -> None:
        """Form a batch, run it, hand out the answers."""
        with self._lock:
            batch = self._form()
        if batch:
            self._tell(lambda: _announce(batch))
            answers = self._answer(batch)
            self._tell(lambda: _hand_out(answers))

    def _go_on(self) -> None:
        """See to the next run."""
        with self._lock:
            self._running = False
            again, waits = self._claim(), bool(self._waiting)
        if again:
            self._begin()  # behind what else waits for that thread; who decodes goes on decoding
        elif waits:
            self._tell(self._wake)

    def _tell(self, what: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the event loop is closed: nobody waits for an answer
            self._loop.call_soon_threadsafe(what)

    def _form(self) -> list[_Item]:
        """Take what runs next out of the queue; those that nobody waits for any more are dropped. Under the lock."""
        waiting = [item for item in self._waiting if not item.answered.done()]
        batch = self._fitting(waiting)
        chosen = set(map(id, batch))
        self._waiting = deque(item for item in waiting if id(item) not in chosen)
        return batch

    def _fitting(self, waiting: Sequence[_Item]) -> list[_Item]:
        if not waiting:
            return []
        first, *others = waiting
        kind = next((item.wanted.kind for item in waiting if item.wanted.kind is not None), None)
        if kind is not None and first.wanted.kind in (kind, None):
            mixed = self._filled(first, others, {kind, None})
            plain = sum(len(item.images) for item in mixed if item.wanted.kind is None)
            if self._sharing.pays(kind, plain):
                return mixed
        return self._filled(first, others, {first.wanted.kind})

    def _filled(self, first: _Item, others: Sequence[_Item], kinds: set[_Kind | None]) -> list[_Item]:
        batch, size = [first], len(first.images)
        for item in others:
            fits = item.wanted.kind in kinds and item.images.shape[1:] == first.images.shape[1:]
            if fits and size + len(item.images) <= self._batching.max_size:
                batch.append(item)
                size += len(item.images)
        return batch

    def _answer(self, batch: Sequence[_Item]) -> list[tuple[_Item, Timed[Answer] | Exception]]:
        begun = time.monotonic_ns()
        images = batch[0].images if len(batch) == 1 else np.concatenate([item.images for item in batch])
        kind = next((item.wanted.kind for item in batch if item.wanted.kind is not None), None)
        methods, softmax, classes = kind or ((), False, 1)
        rows = [[*item.wanted.targets] if item.wanted.kind else [FIRST_RANKED] * classes for item in batch for _ in item.images]
        try:
            answer = self._run(images, np.array(rows, dtype=np.int64), methods, softmax)
        except Exception as error:  # noqa: BLE001  # whatever it is, it belongs to the request that it comes of
            if len(batch) == 1:
                return [(batch[0], error)]
            return [one for item in batch for one in self._answer([item])]
        took_ns = time.monotonic_ns() - begun
        self._on_batch(len(images))
        latest = took_ns / 1e9 / len(images)
        self.image_s += (latest - self.image_s) / 8 if self.image_s else latest
        answers: list[tuple[_Item, Timed[Answer] | Exception]] = []
        start = 0
        for item in batch:
            stop = start + len(item.images)
            own = answer.rows(start, stop, maps=item.wanted.kind is not None)
            answers.append((item, Timed(own, begun - item.asked_ns, took_ns)))
            start = stop
        return answers


def _announce(batch: Sequence[_Item]) -> None:
    for item in batch:
        item.on_turn()


def _hand_out(answers: Sequence[tuple[_Item, Timed[Answer] | Exception]]) -> None:
    for item, answer in answers:
        _settle(item.answered, answer)


def _settle(answered: asyncio.Future[Timed[Answer]], answer: Timed[Answer] | Exception) -> None:
    if answered.done():  # its client has left: a future is set once, and the others of the batch still wait for theirs
        return
    if isinstance(answer, Exception):
        answered.set_exception(answer)
    else:
        answered.set_result(answer)


def _closed() -> ServerError:
    return ServerError("the model is being unloaded: ask again, for the version that is served now")
