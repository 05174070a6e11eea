"""What stands between requests and a session: it takes them one after another, off the event loop."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from contract.explaining import explain_in_steps
from contract.model import Answer, Model
from service.workers import Timed, Workers

MASKED_PICTURES = {"cpu": 4, "cuda": 16}
"""How many masked pictures a Score-CAM runs in a turn, by device: others wait so long. On a CPU, a picture among four costs about a
tenth more than among sixteen; a GPU wants them together."""


class Runner:
    """A model and the one thread that runs it.

    One, because ONNX Runtime spreads a run over its own threads already, and because CUDA keeps its handles by
    the thread that asked: load, warm-up and requests must share it. The GIL is free while the graph runs.
    """

    def __init__(self, model: Model, thread: Workers) -> None:
        self.model = model
        self._thread = thread

    @classmethod
    async def open(cls, path: Path, device: str, threads: int) -> Runner:
        """Load a model and warm it up.

        Args:
            path, device, threads: see `contract.model.Model.open`.

        Raises:
            ModelFileError: missing, broken, or not one of ours.
            DeviceError: the device was asked for and is not there.
            Exception: what ONNX Runtime raises where the graph loads and does not run.
        """
        thread = Workers(1, name=f"run {path.parent.parent.name}/{path.parent.name}")
        try:
            opened = await thread.do(partial(Model.open, spinning=False), path, device, threads)
            await thread.do(opened.value.warm_up)
        except BaseException:
            thread.close(wait=False)  # cancelled at a stop, the load under way must not hold up the event loop
            raise
        return cls(opened.value, thread)

    async def submit(
        self,
        images: npt.NDArray[np.uint8],
        targets: Sequence[int],
        methods: Sequence[str],
        softmax: bool = False,
        max_channels: int | None = None,
    ) -> Timed[Answer]:
        """Run the model when its turn comes.

        What takes many runs takes a turn for each, so that other requests have theirs in between. A request that is
        cancelled takes no further turn.

        Args:
            images, targets, methods, softmax, max_channels: see `contract.explaining.explain`.

        Raises:
            RequestError: a shape, a class or a method that the model does not have.
        """
        steps = explain_in_steps(
            self.model,
            images,
            targets,
            methods,
            softmax=softmax,
            max_channels=max_channels,
            batch_size=MASKED_PICTURES[self.model.device],
        )
        waited_ns = took_ns = 0
        while True:
            turn = await self._thread.do(_take, steps)
            waited_ns += turn.waited_ns
            took_ns += turn.took_ns
            if turn.value is not None:
                return Timed(turn.value, waited_ns, took_ns)

    def close(self) -> None:
        """Wait for the run under way, drop those that wait."""
        self._thread.close()


def _take(steps: Generator[int, None, Answer]) -> Answer | None:
    """One step; its answer, if it was the last."""
    try:
        next(steps)
    except StopIteration as end:  # no future would carry it
        answer: Answer = end.value
        return answer
    return None
