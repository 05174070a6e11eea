"""From an encoded image to a place in the model's queue: where it is decoded, and with which memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tlcli.contract.errors import ImageError
from tlcli.contract.images.network_input import Admit, NetworkInput
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.model.onnx_model import Answer
from tlcli.service.decoding.decode_process import ImageReader, NotPlainError
from tlcli.service.decoding.memory_budget import MemoryBudget, MemoryNeeded
from tlcli.service.execution.batching import Wanted
from tlcli.service.execution.runner import Runner
from tlcli.service.system.thread_pool import Timed, Workers

Read = Callable[[bytes, Preprocessing, bool, Admit], NetworkInput]


class ImageInputs:
    """Decodes images for runners.

    A plain image is decoded in one of `workers`. Any other goes to a process, and one of `watchers` waits for it: these images never
    keep plain ones waiting. Either begins when the budget has the memory for it.
    """

    def __init__(self, reader: ImageReader, workers: Workers, watchers: Workers, budget: MemoryBudget) -> None:
        self._reader = reader
        self._workers = workers
        self._watchers = watchers
        self._budget = budget

    async def see_and_submit(
        self, runner: Runner, data: bytes, wanted: Wanted, keep_image: bool, on_turn: Callable[[], None]
    ) -> tuple[Timed[NetworkInput], Timed[Answer]]:
        """Decode an image and run the model; see `Runner.see_and_submit`.

        Raises:
            ImageError: see `tlcli.contract.images.decoding.decode`.
            RequestError, MemoryLimitError: it takes too much memory, at all or at the moment.
        """
        preprocessing = runner.model.description.preprocessing
        read: Read = self._reader.read_plain
        workers = self._workers
        with self._budget.lease() as lease:
            while True:
                see = partial(lease.work, partial(read, data, preprocessing, keep_image, lease.require))
                try:
                    return await runner.see_and_submit(see, workers, wanted, on_turn)
                except NotPlainError:
                    read, workers = self._reader.read_apart, self._watchers
                except MemoryNeeded as needed:
                    await lease.grow_to(needed.bytes)
                except ImageError as error:
                    # The queue's future holds the error, and the error's traceback the future: a cycle, which would keep the image.
                    raise error.with_traceback(None) from error.__cause__
