"""Images whose structure tells little of what they cost are decoded in processes of their own, which can be killed."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image

from tlcli.contract.errors import ImageError
from tlcli.contract.images.decode_worker import receive, send
from tlcli.contract.images.decoding import ImageLimits
from tlcli.contract.images.network_input import Admit, NetworkInput, from_encoded
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.images.structure import is_plain

_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from tlcli.contract.images.decode_worker import main; main()"

_PATIENCE = 5
"""Multiple of the limit, in wall-clock time, after which a process is killed as well."""

_START_S = 20.0
"""For a process to start, on a busy machine."""


class NotPlainError(Exception):
    """An image that cannot be vouched for; see `tlcli.contract.images.structure.is_plain`."""


class ImageReader:
    """Makes network inputs of encoded images: in the caller's thread if that is quick for certain, in a process if not.

    A process decodes one image at a time, so there are as many as threads that read such images. One without work ends after
    `tlcli.contract.images.decode_worker.IDLE_S`.
    """

    def __init__(self, limits: ImageLimits, max_decode_s: float) -> None:
        """max_decode_s: the processor time that an image may take."""
        self._limits = limits
        self._max_decode_s = max_decode_s
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._closed = False

    def read_plain(self, data: bytes, preprocessing: Preprocessing, keep_image: bool, admit: Admit) -> NetworkInput:
        """See `tlcli.contract.images.network_input.from_encoded`.

        Raises:
            NotPlainError: `read_apart` must do it.
            ImageError: see `tlcli.contract.images.decoding.decode`.
            Exception: what `admit` raises.
        """
        if 0 < len(data) <= self._limits.max_bytes and not is_plain(data):
            raise NotPlainError
        return from_encoded(data, preprocessing, self._limits, keep_image, admit)

    def read_apart(self, data: bytes, preprocessing: Preprocessing, keep_image: bool, admit: Admit) -> NetworkInput:
        """Read an image in a process of its own.

        Raises:
            ImageError: see `tlcli.contract.images.decoding.decode`; or decoding took too long or too much memory.
            Exception: what `admit` raises.
        """
        job = {
            "bytes": len(data),
            "seconds": self._max_decode_s,
            "preprocessing": preprocessing.model_dump(),
            "limits": asdict(self._limits),
            "keep_image": keep_image,
        }
        with self._process() as process:
            outcome = process.do(job, data, admit, self._max_decode_s)
        try:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        finally:
            del outcome  # an error's traceback holds this frame: it would be a cycle, and keep the image

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            self._closed = True
            ending, self._idle = self._idle, []
        for process in ending:
            process.kill()

    @contextmanager
    def _process(self) -> Iterator[_Process]:
        """A process that is alive; kept for the next image unless this one ended it."""
        process = None
        while process is None:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process is None:
                process = _Process()
            elif not process.alive:
                process.kill()
                process = None
        try:
            yield process
        except BaseException:
            process.kill()
            raise
        with self._lock:
            if not self._closed:
                self._idle.append(process)
                return
        process.kill()


class _Process:
    def __init__(self) -> None:
        environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, json.dumps(sys.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._fresh = True

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError, ValueError):
                if stream is not None:
                    stream.close()
        self._process.wait()

    def do(self, job: dict[str, object], data: bytes, admit: Admit, seconds: float) -> NetworkInput | Exception:
        """The input, or why there is none though the process can go on.

        Raises:
            ImageError: the process ended, or was ended.
        """
        jobs, answers = cast("BinaryIO", self._process.stdin), cast("BinaryIO", self._process.stdout)
        late = threading.Timer(_PATIENCE * seconds + (_START_S if self._fresh else 0), self._process.kill)
        late.daemon = True
        late.start()
        try:
            send(jobs, job, data)
            answer, unadmitted = receive(answers), None
            if answer is not None and "memory_bytes" in answer:
                unadmitted = _raised(admit, answer["memory_bytes"])
                send(jobs, {"admitted": unadmitted is None})
                answer = receive(answers)
            if answer is None:
                raise self._ended(seconds)
            self._fresh = False
            if unadmitted is not None:
                return unadmitted
            return ImageError(answer["problem"]) if "problem" in answer else _read_input(answers, answer)
        except (BrokenPipeError, struct.error) as error:
            raise self._ended(seconds) from error
        finally:
            late.cancel()

    def _ended(self, seconds: float) -> ImageError:
        self.kill()
        if self._process.returncode == -getattr(signal, "SIGPROF", 0) or self._process.returncode == -signal.SIGKILL:
            return ImageError(f"the image takes more than {seconds:g} s to decode: save it anew, smaller or as a baseline JPEG or PNG")
        return ImageError("the image cannot be decoded: its decoder gave up")


def _raised(admit: Admit, memory_bytes: int) -> Exception | None:
    try:
        admit(memory_bytes)
    except Exception as error:  # noqa: BLE001  # whatever it is, the process shall know before it is raised
        return error
    return None


def _read_input(answers: BinaryIO, about: dict[str, Any]) -> NetworkInput:
    height, width = about["height"], about["width"]
    images = np.frombuffer(bytearray(answers.read(3 * height * width)), np.uint8).reshape(1, height, width, 3)
    image = None
    if about["image"] is not None:
        across, down = about["image"]
        image = Image.frombytes("RGB", (across, down), answers.read(3 * across * down))
    left, top, right, bottom = about["box"]
    return NetworkInput(images, (left, top, right, bottom), image, about["scale"])
