"""Runner of one model: it takes requests in the event loop and runs them in threads, in batches or, for a Score-CAM, step by step."""

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
"""Masked images in a step of a Score-CAM, by device, while there are no other requests. On a CPU, an image among four costs about a
tenth more than among sixteen; a GPU is faster with all of them together."""

MASKED_IMAGES_UNDER_LOAD = {"cpu": 1, "cuda": 4}
"""Masked images in a step while there are other requests: an image that arrives during a step waits for its end, which should take no
longer than its own run."""

_TURN_S = 1.0
"""Seconds for which steps of a Score-CAM follow each other in the model's thread without other requests. Each return to a busy event loop
would cost time."""

_SHARE = 4
"""Divisor of a busy model's time that gives the share of Score-CAMs, a quarter: less would starve them, more would slow others down."""

_UNDER_LOAD_S = 60.0
"""Seconds after a request with one run for which others like it are expected, so that Score-CAMs take small steps."""


class Runner:
    """Model, with the queue in front of it and its thread.

    One run at a time, because ONNX Runtime spreads a run over its own threads already. On a GPU every run is in the model's thread, because
    CUDA keeps its handles per calling thread: load, warm-up and requests must share it. The GIL is free while the graph runs.
    """

    def __init__(
        self,
        opened: Opened,
        thread: Workers,
        batching: Batching,
        mixing: MixedBatchPolicy,
        on_batch: Callable[[int], None],
        run_pixel_bytes: float = 0.0,
    ) -> None:
        """Create the runner of a loaded model; see `open`.

        Args:
            opened: the model.
            thread: the model's thread.
            batching, mixing, on_batch: see `tlcli.service.execution.batching.Batcher`.
            run_pixel_bytes: see `tlcli.service.execution.run_memory.pixel_bytes`.
        """
        self._pixel_bytes = run_pixel_bytes
        self.model = model = opened.model
        self.how = opened.how
        self._thread = thread
        # `partial` holds the model, not this object: without a reference cycle the session's memory is freed with the runner.
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
            batching: size and delay of batches.
            metrics: counts the sizes of batches.

        Raises:
            ModelFileError: the file is missing, broken, or not an exported model.
            DeviceError: the requested device is not available.
            Exception: any error of ONNX Runtime where the graph loads and does not run.
        """
        thread = Workers(1, name=f"run {path.parent.parent.name}/{path.parent.name}")
        try:
            opened = (await thread.do(open_fastest, path, device, threads, cuda, batching.max_size)).value
            run_pixel_bytes = (await thread.do(pixel_bytes, opened.model)).value
            mixing = (await thread.do(warm_up, opened.model, batching.max_size)).value
        except BaseException:
            thread.close(wait=False)  # cancelled at shutdown, a load in progress must not block the event loop
            raise
        return cls(opened, thread, batching, mixing, metrics.batches(path.parent.parent.name), run_pixel_bytes)

    def image_s(self) -> float:
        """Return the recent time per image in seconds."""
        return self._batcher.image_s

    def run_bytes(self, height: int, width: int) -> int:
        """Return the memory that a run on one image of this size takes beyond a run on the model's own size."""
        own = self.model.description.preprocessing
        return 0 if (height, width) == (own.height, own.width) else round(height * width * self._pixel_bytes)

    def score_cam_s(self) -> float:
        """Return the recent duration of a Score-CAM in seconds."""
        return self._turns.long_s

    async def submit(
        self, images: npt.NDArray[np.uint8], request: MapRequest, free_slot: Callable[[], None] = lambda: None
    ) -> Timed[Answer]:
        """Run the model on images, in a batch with other requests.

        A Score-CAM takes many runs, each in a turn of its own, so that other requests run in between; of several Score-CAMs the oldest
        goes first. A cancelled request takes no further turn.

        Args:
            images: uint8 `[n, H, W, 3]` of a size that the model accepts, n at most the batch size.
            request: maps that the model offers.
            free_slot: called when the request no longer occupies its slot in the queue: when its run starts, or after the last of many.

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
            Exception: any error of `decode`, and those of `submit`.
        """
        with self._counted():
            submitted_ns = time.monotonic_ns()
            if takes_steps(request.methods):
                async with self._turns.long():  # decoded in its turn: Score-CAMs that wait hold no pixels
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
            cancelled.set()  # a turn in progress ends after its step

    def close(self) -> None:
        """Wait for the current run, and refuse the requests in the queue."""
        self._batcher.close()
        self._batcher.wait()
        self._thread.close()


class Turns:
    """Schedule of Score-CAMs, which take many runs, among requests that take one.

    Score-CAMs run one after another, the oldest first. A step runs while no other request is in flight. If others always are, a step runs
    once they have had `_SHARE - 1` times the time of the last step. Used from the event loop's thread only.
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
        """Wait for earlier Score-CAMs, and keep later ones waiting."""
        async with self._oldest:
            begun = time.monotonic()
            yield
            latest = time.monotonic() - begun
            self.long_s += (latest - self.long_s) / 4 if self.long_s else latest

    async def step(self, last_ns: int) -> None:
        """Wait until a Score-CAM may take its next step. last_ns: duration of its last step; 0 before the first."""
        if not self._alone.is_set():
            try:
                async with asyncio.timeout((_SHARE - 1) * last_ns / 1e9):
                    await self._alone.wait()
            except TimeoutError:
                return

    @property
    def alone(self) -> bool:
        """Return True if no request that takes one run is in flight; may be read from any thread."""
        return not self._others

    @property
    def under_load(self) -> bool:
        """Return True if requests that take one run are in flight, or arrived within the last minute."""
        return self._others > 0 or time.monotonic() - self._last_other < _UNDER_LOAD_S


def takes_steps(maps: Iterable[str]) -> bool:
    """Return True if one of the maps takes many runs of the model."""
    return any(map(is_score_cam, maps))


def _run(model: Model, images: npt.NDArray[np.uint8], targets: npt.NDArray[np.int64], methods: tuple[str, ...], softmax: bool) -> Answer:
    return explain(model, images, targets, methods, softmax=softmax)


def _take_steps(steps: Generator[int, None, Answer], goes_on: Callable[[], bool]) -> Answer | None:
    """Take one step, and more while `goes_on` returns True and the turn is short. Return the answer after the last step, else None."""
    until = time.monotonic() + _TURN_S
    while True:
        try:
            next(steps)
        except StopIteration as end:  # a future cannot carry StopIteration
            answer: Answer = end.value
            return answer
        if time.monotonic() >= until or not goes_on():
            return None
