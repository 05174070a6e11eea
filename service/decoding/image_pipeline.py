"""Pipeline from the image of a request to the model's queue. It decodes in a thread or a process, within the memory budget."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

from tlcli.contract.errors import ImageError, RequestError
from tlcli.contract.images.decoding import ImageLimits
from tlcli.contract.images.network_input import Admit, NetworkInput, from_encoded
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.images.structure import is_plain
from tlcli.contract.model.onnx_model import Answer
from tlcli.service.decoding.decode_process import DecodeProcesses
from tlcli.service.decoding.memory_budget import MemoryBudget, MemoryNeeded
from tlcli.service.execution.batching import MapRequest
from tlcli.service.execution.runner import Runner
from tlcli.service.system.thread_pool import Timed, Workers

Decode = Callable[[bytes, Preprocessing, bool, Admit], NetworkInput]


class NotPlainError(Exception):
    """Signal that the structure of an image does not bound the cost of decoding; see `tlcli.contract.images.structure.is_plain`."""


class ImagePipeline:
    """Pipeline that decodes images and submits them to runners.

    Plain images are decoded in a thread of `workers`. All other images are decoded in a separate process while a thread of `watchers`
    waits for the result, so they never delay plain images. Decoding starts once enough memory is free in the budget.
    """

    def __init__(self, limits: ImageLimits, processes: DecodeProcesses, workers: Workers, watchers: Workers, budget: MemoryBudget) -> None:
        self._limits = limits
        self._processes = processes
        self._workers = workers
        self._watchers = watchers
        self._budget = budget

    async def decode_and_submit(
        self, runner: Runner, data: bytes, request: MapRequest, keep_image: bool, free_slot: Callable[[], None]
    ) -> tuple[Timed[NetworkInput], Timed[Answer]]:
        """Decode an image and run the model; see `Runner.decode_and_submit`.

        Raises:
            ImageError: see `tlcli.contract.images.decoding.decode`.
            RequestError: the image needs more memory than the total budget.
            MemoryLimitError: not enough memory became free in time.
        """
        preprocessing = runner.model.description.preprocessing
        decode: Decode = partial(decode_plain, limits=self._limits)
        workers = self._workers
        with self._budget.lease() as lease:
            while True:
                job = partial(lease.work, partial(decode, data, preprocessing, keep_image, lease.require))
                try:
                    return await runner.decode_and_submit(job, workers, request, free_slot)
                except NotPlainError:
                    decode, workers = self._processes.decode, self._watchers
                except MemoryNeeded as needed:
                    await lease.grow_to(needed.bytes)
                except ImageError as error:
                    # The queue's future holds the error, and the error's traceback holds the future: the cycle would keep the image.
                    raise error.with_traceback(None) from error.__cause__


def decode_plain(data: bytes, preprocessing: Preprocessing, keep_image: bool, admit: Admit, limits: ImageLimits) -> NetworkInput:
    """Decode a plain image in the calling thread; see `tlcli.contract.images.network_input.from_encoded`.

    Raises:
        NotPlainError: the image must be decoded in a separate process.
        ImageError: see `tlcli.contract.images.decoding.decode`.
        Exception: any exception raised by `admit`.
    """
    if 0 < len(data) <= limits.max_bytes and not is_plain(data):
        raise NotPlainError
    return from_encoded(data, preprocessing, limits, keep_image, admit)


def from_pixels(data: bytes, preprocessing: Preprocessing, keep_image: bool) -> NetworkInput:
    """Wrap pixels that the caller has prepared as a network input, without copying them.

    Args:
        data: RGB pixels of the model's input size, one byte per channel, row by row.
        preprocessing: preprocessing of the model, which defines the input size.
        keep_image: keep the image in the result so that maps can be drawn on it.

    Raises:
        RequestError: the length of the data does not match the input size.
    """
    height, width = preprocessing.height, preprocessing.width
    if len(data) != height * width * 3:
        raise RequestError(
            f"pixels: expected {height * width * 3:,} bytes, RGB of {width} x {height} pixels (width x height), got {len(data):,}"
        )
    image = np.frombuffer(data, dtype=np.uint8).reshape(height, width, 3)
    return NetworkInput(image[None], (0.0, 0.0, float(width), float(height)), Image.fromarray(image) if keep_image else None)
