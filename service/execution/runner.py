"""Runner of one model, which accepts requests in the event loop and runs them in threads: in batches or, for a Score-CAM, step by step."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlcli.contract.images.network_input import NetworkInput
from tlcli.contract.maps.scorecam import is_score_cam
from tlcli.contract.model.cuda_options import USUAL_CUDA, Cuda
from tlcli.contract.model.explain import explain, explain_in_steps
from tlcli.contract.model.onnx_model import Answer, Model
from tlcli.service.execution.batching import Batcher, Batching, MapRequest, MixedBatchPolicy
from tlcli.service.execution.run_memory import pixel_bytes
from tlcli.service.execution.session_tuning import Opened, open_fastest
from tlcli.service.execution.warm_up import warm_up
from tlcli.service.system.thread_pool import Timed, Workers
from tlcli.service.telemetry.metrics import NO_METRICS, Metrics
from tlcli.service.telemetry.request_record import current_request, timed

MASKED_IMAGES = {"cpu": 4, "cuda": 16}
"""Masked images per Score-CAM step, by device, while there are no other requests. On a CPU, an image in a batch of four costs about a
tenth more than in a batch of sixteen; a GPU is fastest with all of them in one batch."""

MASKED_IMAGES_UNDER_LOAD = {"cpu": 1, "cuda": 4}
"""Masked images per Score-CAM step, by device, while there are other requests. An image that arrives during a step waits until the step
ends, and this wait should be no longer than the image's own run."""

_TURN_S = 1.0
"""Maximum duration of one turn in seconds. While there are no other requests, the steps of a Score-CAM follow each other within a turn
without leaving the model's thread, because each return to a busy event loop costs time."""

_SHARE = 4
"""Divisor that gives Score-CAMs a quarter of a busy model's time. A smaller fraction would starve Score-CAMs, and a larger one
would slow down other requests."""

_UNDER_LOAD_S = 60.0
"""Seconds after a single-run request during which more are expected. Score-CAMs take small steps during this time."""


class Runner:
    """Loaded model with its queue and its thread.

    Only one run is in progress at a time, because ONNX Runtime already spreads each run over its own threads. On a GPU, loading, warm-up
    and all requests run in the model's thread, because CUDA keeps its handles per calling thread. The GIL is released while the graph runs.
    """

    def __init__(
        self,
        opened: Opened,
        thread: Workers,
        batching: Batching,
        mixing: MixedBatchPolicy,
        on_batch: Callable[[int], None] | None,
        run_pixel_bytes: float = 0.0,
    ) -> None:
        """Create a runner for a loaded model. Use `open` to load a model from a file.

        Args:
            opened: the loaded model.
            thread: the model's thread.
            batching, mixing, on_batch: see `tlcli.service.execution.batching.Batcher`.
            run_pixel_bytes: see `tlcli.service.execution.run_memory.pixel_bytes`.
        """
        self._pixel_bytes = run_pixel_bytes
        self.model = model = opened.model
        self.how = opened.how
        self._thread = thread
        # `partial` references the model, not this object. This avoids a reference cycle, so the session's memory is freed with the runner.
        self._batcher = Batcher(thread, partial(_run, model), batching, mixing, any_thread=model.device == "cpu", on_batch=on_batch)
        self._turns = Turns()
        self._in_flight = 0

    @classmethod
    async def open(
        cls, path: Path, device: str, threads: int, batching: Batching, metrics: Metrics = NO_METRICS, cuda: Cuda = USUAL_CUDA
    ) -> Runner:
        """Load a model and warm it up.

        Args:
            path, device, threads, cuda: see `tlcli.service.execution.session_tuning.open_fastest`.
            batching: batch size and delay.
            metrics: metrics that record the batch sizes.

        Raises:
            ModelFileError: the file is missing, broken, or not an exported model.
            DeviceError: the requested device is not available.
            Exception: the graph loads, but ONNX Runtime fails to run it.
        """
        thread = Workers(1, name=f"run {path.parent.parent.name}/{path.parent.name}")
        try:
            opened = (await thread.do(open_fastest, path, device, threads, cuda, batching.max_size)).value
            run_pixel_bytes = (await thread.do(pixel_bytes, opened.model)).value
            mixing = (await thread.do(warm_up, opened.model, batching.max_size)).value
        except BaseException:
            thread.close(wait=False)  # a load that is cancelled at shutdown must not block the event loop
            raise
        return cls(opened, thread, batching, mixing, metrics.batches(path.parent.parent.name), run_pixel_bytes)

    def image_s(self) -> float:
        """Return the recent time per image in seconds."""
        return self._batcher.image_s

    def run_bytes(self, height: int, width: int) -> int:
        """Return the additional memory in bytes for a run on one image of this size; 0 for the model's own input size."""
        own = self.model.description.preprocessing
        return 0 if (height, width) == (own.height, own.width) else round(height * width * self._pixel_bytes)

    def score_cam_s(self) -> float:
        """Return the recent duration of a Score-CAM in seconds."""
        return self._turns.long_s

    async def submit(
        self, images: npt.NDArray[np.uint8], request: MapRequest, free_slot: Callable[[], None] = lambda: None
    ) -> Timed[Answer]:
        """Run the model on images in a batch with other requests.

        A Score-CAM takes many runs. They are split into turns, so that other requests can run in between. Concurrent Score-CAMs run one
        after another, oldest first. A cancelled request takes no further turns.

        Args:
            images: uint8 array `[n, H, W, 3]` of a height and width that the model accepts, with n at most the batch size.
            request: maps to compute; the model must offer them.
            free_slot: called when the request no longer needs its queue slot: when its run starts or, for a Score-CAM, after its last run.

        Raises:
            RequestError: the model does not accept the shape, a class or a method.
            ServerError: the queue was closed.
        """
        with self._counted():
            if takes_steps(request.methods):
                submitted_ns = time.monotonic_ns()
                async with self._turns.long():
                    return await timed("infer", self._run_in_steps(images, request, submitted_ns, free_slot))
            with self._turns.short():
                return await timed("infer", self._batcher.submit(images, request, free_slot))

    async def decode_and_submit(
        self, decode: Callable[[], NetworkInput], workers: Workers, request: MapRequest, free_slot: Callable[[], None] = lambda: None
    ) -> tuple[Timed[NetworkInput], Timed[Answer]]:
        """Decode an image in one of `workers`, then run the model on it as `submit` does.

        Raises:
            Exception: `decode` failed, or `submit` raised one of its errors.
        """
        with self._counted():
            submitted_ns = time.monotonic_ns()
            if takes_steps(request.methods):
                async with self._turns.long():  # decode only when it is this request's turn: waiting Score-CAMs hold no pixels
                    decoded = await timed("decode", workers.do(decode))
                    steps = self._run_in_steps(decoded.value.images, request, submitted_ns + decoded.took_ns, free_slot)
                    return decoded, await timed("infer", steps)
            with self._turns.short():
                decoded, answer = await self._batcher.decode_and_submit(decode, workers, request, free_slot)
            record = current_request()
            record.note_span("decode", submitted_ns, decoded.waited_ns, decoded.took_ns)
            record.note_span("infer", submitted_ns + decoded.waited_ns + decoded.took_ns, answer.waited_ns, answer.took_ns)
            return decoded, answer

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    @property
    def idle(self) -> bool:
        """Return True if no request is in flight."""
        return not self._in_flight

    async def _run_in_steps(
        self, images: npt.NDArray[np.uint8], request: MapRequest, submitted_ns: int, free_slot: Callable[[], None]
    ) -> Timed[Answer]:
        device = self.model.device
        steps = explain_in_steps(
            self.model,
            images,
            request.targets,
            request.methods,
            softmax=request.softmax,
            max_channels=request.max_channels,
            batch_size=lambda: (MASKED_IMAGES_UNDER_LOAD if self._turns.under_load else MASKED_IMAGES)[device],
        )
        took_ns = last_ns = 0
        cancelled = threading.Event()
        take_steps = partial(_take_steps, steps, lambda: self._turns.alone and not cancelled.is_set())
        try:
            while True:
                await self._turns.step(last_ns)
                turn = await self._thread.do(self._batcher.run_exclusively, take_steps)
                last_ns = turn.took_ns
                took_ns += last_ns
                if turn.value is not None:
                    free_slot()
                    return Timed(turn.value, time.monotonic_ns() - submitted_ns - took_ns, took_ns)
        finally:
            cancelled.set()  # a turn in progress ends after the current step

    def close(self) -> None:
        """Reject the queued requests, wait for the current run, and close the thread."""
        self._batcher.close()
        self._batcher.wait()
        self._thread.close()


class Turns:
    """Scheduler that interleaves Score-CAMs, which take many runs, with requests that take a single run.

    Score-CAMs run one after another, oldest first. A step runs when no single-run request is in flight. Under continuous load, a step runs
    after the other requests have had `_SHARE - 1` times the duration of the last step. Not thread-safe: use it from the event loop's thread
    only.
    """

    def __init__(self) -> None:
        self._oldest = asyncio.Lock()  # asyncio's locks are first in, first out
        self._alone = asyncio.Event()
        self._alone.set()
        self._others = 0
        self._last_other = -_UNDER_LOAD_S
        self.long_s = 0.0
        """Recent duration of a Score-CAM in seconds."""

    @contextmanager
    def short(self) -> Iterator[None]:
        """Count a single-run request as in flight, from decoding to response."""
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
        """Wait for earlier Score-CAMs to finish, and keep later ones waiting until the context exits."""
        async with self._oldest:
            begun = time.monotonic()
            yield
            latest = time.monotonic() - begun
            self.long_s += (latest - self.long_s) / 4 if self.long_s else latest

    async def step(self, last_ns: int) -> None:
        """Wait until a Score-CAM may take its next step.

        Args:
            last_ns: duration of its previous step in nanoseconds; 0 before the first step.
        """
        if not self._alone.is_set():
            try:
                async with asyncio.timeout((_SHARE - 1) * last_ns / 1e9):
                    await self._alone.wait()
            except TimeoutError:
                return

    @property
    def alone(self) -> bool:
        """Return True if no single-run request is in flight. May be read from any thread."""
        return not self._others

    @property
    def under_load(self) -> bool:
        """Return True if single-run requests are in flight or arrived within the last minute."""
        return self._others > 0 or time.monotonic() - self._last_other < _UNDER_LOAD_S


def takes_steps(maps: Iterable[str]) -> bool:
    """Return True if any of the maps is a Score-CAM, which takes many runs of the model."""
    return any(map(is_score_cam, maps))


def _run(model: Model, images: npt.NDArray[np.uint8], targets: npt.NDArray[np.int64], methods: tuple[str, ...], softmax: bool) -> Answer:
    return explain(model, images, targets, methods, softmax=softmax)


def _take_steps(steps: Generator[int, None, Answer], goes_on: Callable[[], bool]) -> Answer | None:
    """Take one or more Score-CAM steps within one turn.

    Args:
        steps: generator that performs one step per iteration and returns the result.
        goes_on: returns True while the turn may continue after a step; a turn also ends after `_TURN_S` seconds.

    Returns:
        The result after the last step; None if steps remain.
    """
    until = time.monotonic() + _TURN_S
    while True:
        try:
            next(steps)
        except StopIteration as end:  # a future cannot carry StopIteration
            answer: Answer = end.value
            return answer
        if time.monotonic() >= until or not goes_on():
            return None
