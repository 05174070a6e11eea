"""Worker process for decoding images that may cost more than their size suggests. Unlike a thread, the server can kill it.

The worker reads jobs from standard input and writes answers to standard output; `decode_process` is the server's side. A message
consists of its length in four bytes, followed by JSON. Binary image data follow the message that announces them. The kernel enforces
the CPU time and memory limits of each job, because Pillow's decoders are written in C, which a Python program cannot interrupt.
"""

from __future__ import annotations

import json
import select
import signal
import struct
import sys
from contextlib import suppress
from typing import Any, BinaryIO

from tlcli.contract.errors import ImageError
from tlcli.contract.images.decoding import ImageLimits
from tlcli.contract.images.network_input import NetworkInput, from_encoded
from tlcli.contract.images.preprocessing import Preprocessing

try:
    import resource
except ImportError:  # Windows does not have this module
    resource = None  # type: ignore[assignment]

IDLE_S = 10.0
"""Idle time in seconds after which the process exits."""

_OPENING_BYTES = 256 << 20
_LENGTH = struct.Struct("<I")


class RefusedError(Exception):
    """A job that needs more memory than the server admits."""


def send(stream: BinaryIO, message: dict[str, Any], *payloads: bytes) -> None:
    """Write a message, followed by the payloads that it announces."""
    text = json.dumps(message).encode()
    stream.write(_LENGTH.pack(len(text)) + text)
    for payload in payloads:
        stream.write(payload)
    stream.flush()


def receive(stream: BinaryIO) -> dict[str, Any] | None:
    """Read a message. Return None at the end of the stream."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    message: dict[str, Any] = json.loads(stream.read(_LENGTH.unpack(head)[0]))
    return message


def main() -> None:
    """Process jobs until the server closes the stream or sends no job for `IDLE_S` seconds."""
    jobs, answers = sys.stdin.buffer, sys.stdout.buffer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server handles Ctrl-C
    if sys.platform != "win32":
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a server that has ended reads no answer: end without a traceback
    _decode_in_one_thread()
    while _wait_for_job(IDLE_S) and (job := receive(jobs)) is not None:
        data = jobs.read(job["bytes"])
        seconds: float = job["seconds"]
        _limit_memory(_OPENING_BYTES + 4 * len(data))
        _limit_time(seconds)

        def admit(memory_bytes: int, data: bytes = data, seconds: float = seconds) -> None:
            remaining_s = _limit_time(0)
            send(answers, {"memory_bytes": memory_bytes})
            answer = receive(jobs)
            if answer is None or not answer["admitted"]:
                raise RefusedError
            _limit_memory(_OPENING_BYTES + 4 * len(data) + 2 * memory_bytes)
            _limit_time(remaining_s or seconds)

        try:
            decoded = from_encoded(
                data, Preprocessing.model_validate(job["preprocessing"]), ImageLimits(**job["limits"]), job["keep_image"], admit
            )
        except RefusedError:
            decoded, problem = None, ""
        except ImageError as error:
            decoded, problem = None, str(error)
        except MemoryError:
            decoded, problem = None, "decoding the image takes more memory than its size explains: save it in another format"
        finally:
            _limit_time(0)
            _limit_memory(None)
        if decoded is None:
            send(answers, {"problem": problem})
        else:
            _send_input(answers, decoded)
        del data, decoded


def _send_input(answers: BinaryIO, decoded: NetworkInput) -> None:
    original = [] if decoded.image is None else [decoded.image.tobytes()]
    _, height, width, _ = decoded.images.shape
    header = {
        "height": height,
        "width": width,
        "box": decoded.box,
        "scale": decoded.scale,
        "image": decoded.image and decoded.image.size,
    }
    send(answers, header, decoded.images.tobytes(), *original)


def _wait_for_job(seconds: float) -> bool:
    """Wait for a job. Return False if none arrives within `seconds`.

    This must only be called while the stream's buffer is empty, which is guaranteed because the server sends one job at a time.
    """
    return sys.platform == "win32" or bool(select.select([sys.stdin.buffer], [], [], seconds)[0])


def _decode_in_one_thread() -> None:
    """Disable the AVIF decoder's threads, because their stacks would count towards the memory limit."""
    with suppress(ImportError):
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def _limit_time(seconds: float) -> float:
    """Make the kernel kill this process after `seconds` of CPU time; 0 disables the limit.

    Returns:
        Remaining seconds of the previous limit.
    """
    if sys.platform == "win32":
        return 0.0
    return signal.setitimer(signal.ITIMER_PROF, seconds)[0]


def _limit_memory(more_bytes: int | None) -> None:
    """Limit this process to `more_bytes` of memory beyond its current use, so that larger allocations fail. None removes the limit."""
    if resource is None or sys.platform != "linux":
        return
    soft = resource.RLIM_INFINITY
    if more_bytes is not None:
        with open("/proc/self/statm", "rb") as statm:
            soft = int(statm.read().split()[0]) * resource.getpagesize() + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (soft, resource.getrlimit(resource.RLIMIT_AS)[1]))
