"""What stands between requests and a session: it runs them off the event loop, many at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlcli.contract.images.network_input import NetworkInput
from tlcli.contract.maps.scorecam import is_score_cam
from tlcli.contract.model.cuda_options import USUAL_CUDA, Cuda
from tlcli.contract.model.explain import explain, explain_in_steps
from tlcli.contract.model.onnx_model import Answer, Model
from tlcli.service.execution.batching import Batcher, Batching, Sharing, Wanted
from tlcli.service.execution.run_memory import pixel_bytes
from tlcli.service.execution.session_tuning import Opened, open_fastest
from tlcli.service.execution.turns import Turns
from tlcli.service.execution.warm_up import warm_up
from tlcli.service.system.thread_pool import Timed, Workers
from tlcli.service.telemetry.metrics import NO_METRICS, Metrics
from tlcli.service.telemetry.request_record import current_request, timed

MASKED_IMAGES = {"cpu": 4, "cuda": 16}
"""Masked images that a Score-CAM runs in a turn, by device, while there are no other requests. On a CPU, an image among four costs about a
tenth more than among sixteen; a GPU wants them together."""

AMONG_OTHERS = {"cpu": 1, "cuda": 4}
"""The same where others ask: an image that comes during a step waits for its end, which should take no longer than its own run."""


_TURN_S = 1.0
"""Steps of a Score-CAM follow each other in its thread for so long, while nobody else asks: a busy event loop would come between them."""


class Runner:
    """A model, the queue before it, and its thread.

    One run at a time, because ONNX Runtime spreads a run over its own threads already. On a GPU always in the model's
    thread, because CUDA keeps its handles by the thread that asked: load, warm-up and requests must share it. The GIL is
    free while the graph runs.
    """

    def __init__(
        self,
        opened: Opened,
        thread: Workers,
        batching: Batching,
        sharing: Sharing,
        on_batch: Callable[[int], None],
        run_pixel_bytes: float = 0.0,
    ) -> None:
        """run_pixel_bytes: see `tlcli.service.execution.run_memory.pixel_bytes`."""
        self._pixel_bytes = run_pixel_bytes
        self.model = model = opened.model
        self.how = opened.how
        self._thread = thread
        # No cycle: a session's memory falls with it.
        self._batcher = Batcher(thread, partial(_run, model), batching, sharing, any_thread=model.device == "cpu", on_batch=on_batch)
        self._turns = Turns()
        self._under_way = 0

    @classmethod
    async def open(
        cls, path: Path, device: str, threads: int, batching: Batching, metrics: Metrics = NO_METRICS, cuda: Cuda = USUAL_CUDA
    ) -> Runner:
        """Load a model and warm it up.

        Args:
            path, device, threads, cuda: see `tlcli.service.execution.session_tuning.open_fastest`.
            batching: how requests share runs.
            metrics: that the sizes of the runs are counted in.

        Raises:
            ModelFileError: missing, broken, or not one of ours.
            DeviceError: the device was asked for and is not there.
            Exception: what ONNX Runtime raises where the graph loads and does not run.
        """
        thread = Workers(1, name=f"run {path.parent.parent.name}/{path.parent.name}")
        try:
            opened = (await thread.do(open_fastest, path, device, threads, cuda, batching.max_size)).value
            run_pixel_bytes = (await thread.do(pixel_bytes, opened.model)).value
            sharing = (await thread.do(warm_up, opened.model, batching.max_size)).value
        except BaseException:
            thread.close(wait=False)  # cancelled at a stop, the load under way must not hold up the event loop
            raise
        return cls(opened, thread, batching, sharing, metrics.batches(path.parent.parent.name), run_pixel_bytes)

    def image_s(self) -> float:
        """What an image took of late, in seconds."""
        return self._batcher.image_s

    def run_bytes(self, height: int, width: int) -> int:
        """Return the memory that a run on one image of that size takes beyond what runs of the model's own size do."""
        own = self.model.description.preprocessing
        return 0 if (height, width) == (own.height, own.width) else round(height * width * self._pixel_bytes)

    def score_cam_s(self) -> float:
        """Recent duration of a Score-CAM in seconds."""
        return self._turns.long_s

    async def submit(self, images: npt.NDArray[np.uint8], wanted: Wanted, on_turn: Callable[[], None] = lambda: None) -> Timed[Answer]:
        """Run the model when its turn comes, together with what else waits for it.

        What takes many runs takes a turn for each, so that other requests have theirs in between; of several such requests the
        oldest goes first. A request that is cancelled takes no further turn.

        Args:
            images: uint8 `[n, H, W, 3]`, fit for the model, n at most the batch's size.
            wanted: fit for the model.
            on_turn: called when the request needs its place no longer: when its run begins, or after the last of many.

        Raises:
            RequestError: a shape, a class or a method that the model does not have.
            ServerError: closed meanwhile.
        """
        with self._one_more():
            if takes_steps(wanted.methods):
                asked_ns = time.monotonic_ns()
                async with self._turns.long():
                    return await timed("infer", self._in_steps(images, wanted, asked_ns, on_turn))
            with self._turns.short():
                return await timed("infer", self._batcher.submit(images, wanted, on_turn))

    async def see_and_submit(
        self, see: Callable[[], NetworkInput], workers: Workers, wanted: Wanted, on_turn: Callable[[], None] = lambda: None
    ) -> tuple[Timed[NetworkInput], Timed[Answer]]:
        """Decode an image in one of `workers`, then `submit` it.

        Raises:
            Exception: what `see` raises.
        """
        with self._one_more():
            asked_ns = time.monotonic_ns()
            if takes_steps(wanted.methods):
                async with self._turns.long():  # decoded when it is its turn: those that wait hold no pixels
                    seen = await timed("decode", workers.do(see))
                    return seen, await timed("infer", self._in_steps(seen.value.images, wanted, asked_ns + seen.took_ns, on_turn))
            with self._turns.short():
                seen, ran = await self._batcher.see_and_submit(see, workers, wanted, on_turn)
            request = current_request()
            request.note_span("decode", asked_ns, seen.waited_ns, seen.took_ns)
            request.note_span("infer", asked_ns + seen.waited_ns + seen.took_ns, ran.waited_ns, ran.took_ns)
            return seen, ran

    @contextmanager
    def _one_more(self) -> Iterator[None]:
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    @property
    def idle(self) -> bool:
        """Whether nothing is submitted."""
        return not self._under_way

    async def _in_steps(self, images: npt.NDArray[np.uint8], wanted: Wanted, asked_ns: int, on_turn: Callable[[], None]) -> Timed[Answer]:
        device = self.model.device
        steps = explain_in_steps(
            self.model,
            images,
            wanted.targets,
            wanted.methods,
            softmax=wanted.softmax,
            max_channels=wanted.max_channels,
            batch_size=lambda: (AMONG_OTHERS if self._turns.in_company else MASKED_IMAGES)[device],
        )
        took_ns = last_ns = 0
        over = threading.Event()
        take = partial(_take, steps, lambda: self._turns.alone and not over.is_set())
        try:
            while True:
                await self._turns.step(last_ns)
                turn = await self._thread.do(self._batcher.alone, take)
                last_ns = turn.took_ns
                took_ns += last_ns
                if turn.value is not None:
                    on_turn()
                    return Timed(turn.value, time.monotonic_ns() - asked_ns - took_ns, took_ns)
        finally:
            over.set()  # cancelled: the turn under way ends after its step

    def close(self) -> None:
        """Wait for the run under way, drop those that wait."""
        self._batcher.close()
        self._batcher.wait()
        self._thread.close()


def takes_steps(maps: Iterable[str]) -> bool:
    """True where one of the maps takes many runs of the model."""
    return any(map(is_score_cam, maps))


def _run(model: Model, images: npt.NDArray[np.uint8], targets: npt.NDArray[np.int64], methods: tuple[str, ...], softmax: bool) -> Answer:
    return explain(model, images, targets, methods, softmax=softmax)


def _take(steps: Generator[int, None, Answer], goes_on: Callable[[], bool]) -> Answer | None:
    """One step, and more while `goes_on` says so and the turn is short; the answer, if it was the last."""
    until = time.monotonic() + _TURN_S
    while True:
        try:
            next(steps)
        except StopIteration as end:  # no future would carry it
            answer: Answer = end.value
            return answer
        if time.monotonic() >= until or not goes_on():
            return None
