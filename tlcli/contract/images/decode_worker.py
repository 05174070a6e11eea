"""A process that decodes images which may cost more than their size tells: the server kills it where it must, as no thread can be.

It reads jobs from standard input and writes answers to standard output; `decode_process` is the other side. A message is its
length in four bytes and JSON; the bytes of images follow the message that gives their number. Each job has its share of processor time
and of memory, which the kernel enforces: Pillow's decoders are C, which a Python program cannot interrupt.
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
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

IDLE_S = 10.0
"""Without a job for so long, the process ends."""

_OPENING_BYTES = 256 << 20
_LENGTH = struct.Struct("<I")


class RefusedError(Exception):
    """The server does not admit the memory that an image takes."""


def send(stream: BinaryIO, message: dict[str, Any], *payloads: bytes) -> None:
    """Write a message, and what it announces."""
    text = json.dumps(message).encode()
    stream.write(_LENGTH.pack(len(text)) + text)
    for payload in payloads:
        stream.write(payload)
    stream.flush()


def receive(stream: BinaryIO) -> dict[str, Any] | None:
    """Read a message; None at the stream's end."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    message: dict[str, Any] = json.loads(stream.read(_LENGTH.unpack(head)[0]))
    return message


def main() -> None:
    """Do one job after another until the server is gone or has none."""
    jobs, answers = sys.stdin.buffer, sys.stdout.buffer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's
    _decode_in_one_thread()
    while _comes(IDLE_S) and (job := receive(jobs)) is not None:
        data = jobs.read(job["bytes"])
        seconds: float = job["seconds"]
        _limit_memory(_OPENING_BYTES + 4 * len(data))
        _limit_time(seconds)

        def admit(memory_bytes: int, data: bytes = data, seconds: float = seconds) -> None:
            left_s = _limit_time(0)
            send(answers, {"memory_bytes": memory_bytes})
            answer = receive(jobs)
            if answer is None or not answer["admitted"]:
                raise RefusedError
            _limit_memory(_OPENING_BYTES + 4 * len(data) + 2 * memory_bytes)
            _limit_time(left_s or seconds)

        try:
            seen = from_encoded(
                data, Preprocessing.model_validate(job["preprocessing"]), ImageLimits(**job["limits"]), job["keep_image"], admit
            )
        except RefusedError:
            seen, problem = None, ""
        except ImageError as error:
            seen, problem = None, str(error)
        except MemoryError:
            seen, problem = None, "decoding the image takes more memory than its size explains: send it as another file"
        finally:
            _limit_time(0)
            _limit_memory(None)
        if seen is None:
            send(answers, {"problem": problem})
        else:
            _send_input(answers, seen)
        del data, seen


def _send_input(answers: BinaryIO, seen: NetworkInput) -> None:
    kept = [] if seen.image is None else [seen.image.tobytes()]
    _, height, width, _ = seen.images.shape
    about = {"height": height, "width": width, "box": seen.box, "scale": seen.scale, "image": seen.image and seen.image.size}
    send(answers, about, seen.images.tobytes(), *kept)


def _comes(seconds: float) -> bool:
    """Wait for a job. Only called while nothing is left in the stream's buffer: the server sends one job at a time."""
    return sys.platform == "win32" or bool(select.select([sys.stdin.buffer], [], [], seconds)[0])


def _decode_in_one_thread() -> None:
    """Threads' stacks would count as memory."""
    with suppress(ImportError):
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def _limit_time(seconds: float) -> float:
    """Let the kernel end this process after so much processor time, 0 for never; return what was left of the time before."""
    if sys.platform == "win32":
        return 0.0
    return signal.setitimer(signal.ITIMER_PROF, seconds)[0]


def _limit_memory(more_bytes: int | None) -> None:
    """Let allocations fail that would take more than this beyond what the process has now; None: no limit."""
    if resource is None or sys.platform != "linux":
        return
    soft = resource.RLIM_INFINITY
    if more_bytes is not None:
        with open("/proc/self/statm", "rb") as statm:
            soft = int(statm.read().split()[0]) * resource.getpagesize() + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (soft, resource.getrlimit(resource.RLIMIT_AS)[1]))
