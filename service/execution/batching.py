"""Batching queue in front of one model.

While one batch runs, the next batch collects in the queue. A busy server therefore batches without any added delay, and an idle server
runs an image immediately. Set `Batching.delay_s` to make an idle model wait for more images; this pays off where a batch costs hardly more
than a single image, as on a GPU.

States of a `Batcher`, guarded by `_lock`:

            enqueue                 batch full, or delay_s over
    IDLE ────────────▶ GATHERING ───────────────────────────────▶ RUNNING
     ▲                     ▲                                       │ │ ▲
     │                     └───── images wait, no batch is due ────┤ │ │
     └─────────────────────────── the queue is empty ──────────────┘ └─┘ a batch is due

- IDLE: the queue is empty.
- GATHERING: images are queued, and an event-loop timer bounds the wait. With `delay_s` 0 this state has no duration.
- RUNNING: one thread forms a batch and runs it. Images that arrive meanwhile join the queue.
- `close` rejects the queued images and all later ones. The batch in progress still completes.

Three kinds of threads call the methods:

| step | method | thread |
|---|---|---|
| enqueue an image | `_enqueue` | event loop (`submit`), decoder (`decode_and_submit`) |
| GATHERING to RUNNING | `_enter_running` | the thread that enqueued; event loop, when the timer fires (`_check_gathering`) |
| RUNNING | `_run_in_model_thread`, `_run_in_this_thread` | model; decoder, if any thread may run the model and it is free |
| RUNNING to its successor | `_leave_running` | the thread that ran the batch |

The lock `_model` is held while the model runs, regardless of the thread. Results reach the event loop only through `_call_in_loop`.
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
"""Callable that runs a model: `run(images, targets, methods, softmax)`.

`images` is `[N, H, W, 3]`, `targets` holds class ids or ranks `[N, K]`, `methods` are map names, and `softmax` selects probabilities
instead of logits as the explained values; see `tlcli.contract.model.onnx_model.Model.run`.
"""


@dataclass(frozen=True)
class MapRequest:
    """Maps to compute in a run. By default, only scores are computed.

    targets: classes to explain, by id or rank; at least one.
    methods: names of the maps; empty for scores only.
    softmax: explain probabilities instead of logits.
    max_channels: number of channels for a Score-CAM; None for the method's default.
    """

    targets: tuple[int, ...] = (FIRST_RANKED,)
    methods: tuple[str, ...] = ()
    softmax: bool = False
    max_channels: int | None = None

    @property
    def kind(self) -> _Kind | None:
        """Return the properties that all images with maps in one run must share: methods, softmax and class count. None without maps."""
        return (self.methods, self.softmax, len(self.targets)) if self.methods else None


_Kind = tuple[tuple[str, ...], bool, int]


@dataclass(frozen=True)
class Batching:
    """Batch size and batching delay.

    max_size: maximum batch size in images.
    delay_s: maximum time in seconds that the first queued image waits for others while the model is idle.
    """

    max_size: int = 8
    delay_s: float = 0.0


@dataclass(frozen=True)
class MixedBatchPolicy:
    """Cost model that decides when images without maps join a batch with maps.

    They join when computing their unneeded maps costs less than a separate run.

    methods: maps with a measured cost; batches with other maps are not mixed.
    run_s: fixed cost of a run in seconds.
    map_s: cost of one image's map in seconds.
    """

    methods: frozenset[str] = frozenset()
    run_s: float = 0.0
    map_s: float = 0.0

    def pays(self, kind: _Kind, images: int) -> bool:
        """Return True if it is cheaper to add `images` images without maps to a batch of `kind` than to run them separately."""
        methods, _, classes = kind
        return self.methods.issuperset(methods) and images * len(methods) * classes * self.map_s < self.run_s


@dataclass(eq=False)
class _Item:
    """Queue entry: the images of one request.

    free_slot: callback for the event loop, called when the run starts.
    future: receives the result.
    """

    images: Images
    request: MapRequest
    free_slot: Callable[[], None]
    future: asyncio.Future[Timed[Answer]]
    queued_ns: int = field(default_factory=time.monotonic_ns)


class Batcher:
    """First-in, first-out batching queue of one model. Later images overtake earlier ones only to fill a batch that is already due.

    Call `submit` and `decode_and_submit` from the event loop's thread. Batches are formed and run in the model's thread. With
    `any_thread`, a thread that has just decoded an image runs the model itself if the model is free, which avoids a handover between
    threads.
    """

    def __init__(
        self,
        thread: Workers,
        run: Run,
        batching: Batching,
        mixing: MixedBatchPolicy,
        *,
        any_thread: bool = False,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        """Create an empty queue.

        Args:
            thread: the model's own thread.
            run: callable that runs the model.
            batching: batch size and delay.
            mixing: policy that decides which requests share a batch.
            any_thread: allow threads other than the model's to call `run`, one at a time.
            on_batch: called with the number of images after each successful run, in the thread that ran the batch.
        """
        self._thread = thread
        self._run = run
        self._any_thread = any_thread
        self._on_batch = on_batch
        self._batching = batching
        self._mixing = mixing
        self._model = threading.Lock()  # held while the model runs, regardless of the thread
        self._lock = threading.Lock()  # guards the three attributes below
        self._queue: deque[_Item] = deque()
        self._running = False
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.image_s = 0.0
        """Recent time per image in seconds, used to estimate waiting times."""

    async def submit(self, images: Images, request: MapRequest, free_slot: Callable[[], None] = lambda: None) -> Timed[Answer]:
        """Run images in a batch with other requests. If the call is cancelled before the run starts, the images are dropped.

        Args:
            images: array `[n, H, W, 3]` of a height and width that the model accepts, with n at most the batch size.
            request: maps to compute; the model must offer them.
            free_slot: called in the event loop when the run starts.

        Raises:
            ServerError: the queue was closed.
            Exception: the run failed for these images.
        """
        future: asyncio.Future[Timed[Answer]] = self._loop.create_future()
        if self._enqueue(_Item(images, request, free_slot, future)):
            self._start_model_thread()
        return await future

    async def decode_and_submit(
        self, decode: Callable[[], NetworkInput], workers: Workers, request: MapRequest, free_slot: Callable[[], None] = lambda: None
    ) -> tuple[Timed[NetworkInput], Timed[Answer]]:
        """Decode an image in one of `workers` and run it in a batch with other requests.

        The worker thread enqueues the decoded image itself. If the call is cancelled, steps that have not started yet are skipped.

        Args:
            decode: returns an input of a size that the model accepts.
            workers: threads that decode images.
            request, free_slot: see `submit`.

        Raises:
            ServerError: the queue was closed.
            Exception: `decode` failed, or the run failed for this image.
        """
        submitted_ns = time.monotonic_ns()
        future: asyncio.Future[Timed[Answer]] = self._loop.create_future()
        decoded: list[Timed[NetworkInput]] = []

        def decode_and_enqueue() -> None:
            if future.done():
                return
            begun_ns = time.monotonic_ns()
            try:
                value = decode()
                decoded.append(Timed(value, begun_ns - submitted_ns, time.monotonic_ns() - begun_ns))
                runs = self._enqueue(_Item(value.images, request, free_slot, future))
            except Exception as error:  # noqa: BLE001  # every error of these steps belongs to this image
                self._call_in_loop(partial(_resolve, future, error))
                return
            if runs:
                self._run_in_this_thread()

        workers.start(decode_and_enqueue)
        answer = await future
        return decoded[0], answer

    def close(self) -> None:
        """Reject the queued images and all later ones. The batch in progress still completes."""
        with self._lock:
            self._closed = True
            refused = [*self._queue]
            self._queue.clear()
        for item in refused:
            self._call_in_loop(partial(_resolve, item.future, _closed()))

    def wait(self) -> None:
        """Block until the current run is done, regardless of the thread it is in."""
        with self._model:
            pass

    def run_exclusively(self, job: Callable[[], T]) -> T:
        """Call a job that runs the model directly, bypassing the queue, and hold off batches meanwhile.

        Call this method from the model's thread.
        """
        with self._model:
            return job()

    def _enqueue(self, item: _Item) -> bool:
        """Append an item to the queue; may be called from any thread.

        Returns:
            True if the state changed to RUNNING; the caller must then start the run.

        Raises:
            ServerError: the queue was closed.
        """
        with self._lock:
            if self._closed:
                raise _closed()
            self._queue.append(item)
            runs, gathering = self._enter_running(), not self._running
        if gathering:
            self._call_in_loop(self._check_gathering)  # the timer belongs to the event loop
        return runs

    def _enter_running(self) -> bool:
        """Change from GATHERING to RUNNING if a batch is due.

        Return True if the state changed; the caller must then start the run. The caller must hold the lock.
        """
        if self._running or not self._queue or self._due_s() > 0:
            return False
        self._running = True
        return True

    def _check_gathering(self) -> None:
        """Start a run if a batch is due, and otherwise set a timer for it. Called in the event loop."""
        with self._lock:
            runs = self._enter_running()
            due_s = self._due_s() if self._queue and not self._running else 0.0
        if runs:
            self._start_model_thread()
        elif due_s > 0 and (self._timer is None or self._timer.when() <= self._loop.time()):
            self._timer = self._loop.call_later(due_s, self._check_gathering)

    def _due_s(self) -> float:
        """Return the seconds until a batch is due; 0 if the batch is full. The caller must hold the lock."""
        if not self._batching.delay_s or sum(len(item.images) for item in self._queue) >= self._batching.max_size:
            return 0.0
        return self._batching.delay_s - (time.monotonic_ns() - self._queue[0].queued_ns) / 1e9

    def _start_model_thread(self) -> None:
        """Schedule the run in the model's thread."""
        with suppress(RuntimeError):  # the thread and the queue were closed: queued requests have been rejected already
            self._thread.start(self._run_in_model_thread)

    def _run_in_model_thread(self) -> None:
        with self._model:
            self._run_batch()
        self._leave_running()

    def _run_in_this_thread(self) -> None:
        """Run a batch in the calling thread. Fall back to the model's thread if the calling thread may not run it or the model is busy."""
        if not self._any_thread or not self._model.acquire(blocking=False):
            self._start_model_thread()
            return
        try:
            self._run_batch()
        finally:
            self._model.release()
        self._leave_running()

    def _leave_running(self) -> None:
        """Change from RUNNING to the next state: RUNNING, GATHERING or IDLE."""
        with self._lock:
            self._running = False
            runs, gathering = self._enter_running(), bool(self._queue)
        if runs:
            self._start_model_thread()  # queued behind that thread's other jobs; a decoder returns to decoding
        elif gathering:
            self._call_in_loop(self._check_gathering)

    def _run_batch(self) -> None:
        """Form a batch, run it, and deliver the results."""
        with self._lock:
            batch = self._take_batch()
        if batch:
            self._call_in_loop(lambda: _free_slots(batch))
            results = self._results(batch)
            self._call_in_loop(lambda: _hand_out(results))

    def _call_in_loop(self, callback: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the event loop is closed: no caller waits for a result
            self._loop.call_soon_threadsafe(callback)

    def _take_batch(self) -> list[_Item]:
        """Remove the next batch from the queue and drop cancelled items. The caller must hold the lock."""
        waiting = [item for item in self._queue if not item.future.done()]
        batch = self._next_batch(waiting)
        chosen = set(map(id, batch))
        self._queue = deque(item for item in waiting if id(item) not in chosen)
        return batch

    def _next_batch(self, waiting: Sequence[_Item]) -> list[_Item]:
        if not waiting:
            return []
        first, *others = waiting
        kind = next((item.request.kind for item in waiting if item.request.kind is not None), None)
        if kind is not None and first.request.kind in (kind, None):
            mixed = self._fill(first, others, {kind, None})
            plain = sum(len(item.images) for item in mixed if item.request.kind is None)
            if self._mixing.pays(kind, plain):
                return mixed
        return self._fill(first, others, {first.request.kind})

    def _fill(self, first: _Item, others: Sequence[_Item], kinds: set[_Kind | None]) -> list[_Item]:
        batch, size = [first], len(first.images)
        for item in others:
            fits = item.request.kind in kinds and item.images.shape[1:] == first.images.shape[1:]
            if fits and size + len(item.images) <= self._batching.max_size:
                batch.append(item)
                size += len(item.images)
        return batch

    def _results(self, batch: Sequence[_Item]) -> list[tuple[_Item, Timed[Answer] | Exception]]:
        """Run a batch. If it fails, rerun it request by request so that only the request at fault gets the error."""
        begun = time.monotonic_ns()
        images = batch[0].images if len(batch) == 1 else np.concatenate([item.images for item in batch])
        kind = next((item.request.kind for item in batch if item.request.kind is not None), None)
        methods, softmax, classes = kind or ((), False, 1)
        rows = [[*item.request.targets] if item.request.kind else [FIRST_RANKED] * classes for item in batch for _ in item.images]
        try:
            answer = self._run(images, np.array(rows, dtype=np.int64), methods, softmax)
        except Exception as error:  # noqa: BLE001  # every error belongs to the request that caused it
            if len(batch) == 1:
                return [(batch[0], error)]
            return [result for item in batch for result in self._results([item])]
        took_ns = time.monotonic_ns() - begun
        if self._on_batch is not None:
            self._on_batch(len(images))
        latest = took_ns / 1e9 / len(images)
        self.image_s += (latest - self.image_s) / 8 if self.image_s else latest
        results: list[tuple[_Item, Timed[Answer] | Exception]] = []
        start = 0
        for item in batch:
            stop = start + len(item.images)
            own = answer.rows(start, stop, maps=item.request.kind is not None)
            results.append((item, Timed(own, begun - item.queued_ns, took_ns)))
            start = stop
        return results


def _free_slots(batch: Sequence[_Item]) -> None:
    for item in batch:
        item.free_slot()


def _hand_out(results: Sequence[tuple[_Item, Timed[Answer] | Exception]]) -> None:
    for item, result in results:
        _resolve(item.future, result)


def _resolve(future: asyncio.Future[Timed[Answer]], result: Timed[Answer] | Exception) -> None:
    if future.done():  # the request was cancelled; the others of the batch still get their results
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def _closed() -> ServerError:
    return ServerError("the model is being unloaded: retry to reach the current version")
