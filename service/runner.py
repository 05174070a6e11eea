"""What stands between requests and a session: it takes them one after another, off the event loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from contract.model import Answer, Model
from service.workers import Timed, Workers


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
            opened = await thread.do(Model.open, path, device, threads)
            await thread.do(opened.value.warm_up)
        except BaseException:
            thread.close(wait=False)  # cancelled at a stop, the load under way must not hold up the event loop
            raise
        return cls(opened.value, thread)

    async def submit(self, images: npt.NDArray[np.uint8], targets: Sequence[int], methods: Sequence[str]) -> Timed[Answer]:
        """Run the model when its turn comes; a request that is cancelled before its turn is never run.

        Args:
            images, targets, methods: see `contract.model.Model.run`.

        Raises:
            RequestError: a shape, a class or a method that the model does not have.
        """
        return await self._thread.do(self.model.run, images, targets, methods)

    def close(self) -> None:
        """Wait for the run under way, drop those that wait."""
        self._thread.close()
