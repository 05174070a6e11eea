"""Worker processes that decode images whose structure does not bound the cost. Unlike a thread, a process can be killed."""

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
from tlcli.contract.images.network_input import Admit, NetworkInput
from tlcli.contract.images.preprocessing import Preprocessing

_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from tlcli.contract.images.decode_worker import main; main()"

_PATIENCE = 5
"""Wall-clock time after which a process is killed, as a multiple of the CPU time limit."""

_START_S = 20.0
"""Additional seconds that a new process gets to start on a busy machine."""


class DecodeProcesses:
    """Pool of worker processes that decode images.

    Each process decodes one image at a time, so the pool has as many processes as threads that call `decode`. An idle process exits
    after `tlcli.contract.images.decode_worker.IDLE_S` seconds.
    """

    def __init__(self, limits: ImageLimits, max_decode_s: float) -> None:
        """Create an empty pool.

        Args:
            limits: limits on each image.
            max_decode_s: CPU time limit for decoding one image, in seconds.
        """
        self._limits = limits
        self._max_decode_s = max_decode_s
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._closed = False

    def decode(self, data: bytes, preprocessing: Preprocessing, keep_image: bool, admit: Admit) -> NetworkInput:
        """Decode an image in a worker process; see `tlcli.contract.images.network_input.from_encoded`.

        Raises:
            ImageError: the image cannot be decoded (see `tlcli.contract.images.decoding.decode`), or decoding took too much time or memory.
            Exception: any exception raised by `admit`.
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
            del outcome  # an error's traceback holds this frame: the cycle would keep the image in memory

    def close(self) -> None:
        """Kill the idle processes. Each busy process is killed once it has decoded its image."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for process in idle:
            process.kill()

    @contextmanager
    def _process(self) -> Iterator[_Process]:
        """Yield a live process. Return it to the pool afterwards, or kill it if the block raised an exception."""
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
    """Worker process that runs `tlcli.contract.images.decode_worker`, and the pipes to it."""

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
        """Kill the process, close its pipes, and wait until it has ended."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError, ValueError):
                if stream is not None:
                    stream.close()
        self._process.wait()

    def do(self, job: dict[str, object], data: bytes, admit: Admit, seconds: float) -> NetworkInput | Exception:
        """Decode an image in the process. Return the result, or an error after which the process can be used again.

        Raises:
            ImageError: the process exited or was killed.
        """
        jobs, answers = cast("BinaryIO", self._process.stdin), cast("BinaryIO", self._process.stdout)
        deadline = threading.Timer(_PATIENCE * seconds + (_START_S if self._fresh else 0), self._process.kill)
        deadline.daemon = True
        deadline.start()
        try:
            send(jobs, job, data)
            answer, refusal = receive(answers), None
            if answer is not None and "memory_bytes" in answer:
                refusal = _refusal(admit, answer["memory_bytes"])
                send(jobs, {"admitted": refusal is None})
                answer = receive(answers)
            if answer is None:
                raise self._ended(seconds)
            self._fresh = False
            if refusal is not None:
                return refusal
            return ImageError(answer["problem"]) if "problem" in answer else _read_input(answers, answer)
        except (BrokenPipeError, struct.error) as error:
            raise self._ended(seconds) from error
        finally:
            deadline.cancel()

    def _ended(self, seconds: float) -> ImageError:
        self.kill()
        if self._process.returncode == -getattr(signal, "SIGPROF", 0) or self._process.returncode == -signal.SIGKILL:
            return ImageError(f"the image takes more than {seconds:g} s to decode: reduce its size, or save it as a baseline JPEG or PNG")
        return ImageError("the image cannot be decoded: its decoder crashed or ran out of memory")


def _refusal(admit: Admit, memory_bytes: int) -> Exception | None:
    try:
        admit(memory_bytes)
    except Exception as error:  # noqa: BLE001  # the process must learn of any error before it is raised
        return error
    return None


def _read_input(answers: BinaryIO, header: dict[str, Any]) -> NetworkInput:
    height, width = header["height"], header["width"]
    images = np.frombuffer(bytearray(answers.read(3 * height * width)), np.uint8).reshape(1, height, width, 3)
    image = None
    if header["image"] is not None:
        columns, rows = header["image"]
        image = Image.frombytes("RGB", (columns, rows), answers.read(3 * columns * rows))
    left, top, right, bottom = header["box"]
    return NetworkInput(images, (left, top, right, bottom), image, header["scale"])
