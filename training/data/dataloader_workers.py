"""The processes that read images for PyTorch's `DataLoader`: how they start, end, and what is said when one fails."""

from __future__ import annotations

import errno
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from types import TracebackType

from tlcli.contract.errors import first_line
from tlcli.training.runtime.parent_death import end_with_parent

_INTERRUPTS = {signal.SIGINT, signal.SIGTERM}

_ENDING_S = 2.0
"""How long a worker may take to end after its last message was cut short."""


@contextmanager
def starting_workers(started: list[BaseProcess]) -> Iterator[None]:
    """Add the workers that start in the block to `started`, and hold signals back meanwhile.

    A worker that is interrupted before `begin_worker` would print a traceback. And PyTorch's handler of SIGCHLD, which raises an error
    at any line of this process when a worker ends, is taken away: the loader notices within seconds by itself, where it can be handled.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    children = set(multiprocessing.active_children())
    on_end = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        started += set(multiprocessing.active_children()) - children
        if signal.getsignal(signal.SIGCHLD) is not on_end:
            signal.signal(signal.SIGCHLD, on_end)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker(_: int) -> None:
    """Leave Ctrl-C to the training process, which ends its workers, and end with it; die of a bus error without a second message."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGBUS, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
    sys.excepthook = _tell_unless_hung_up
    end_with_parent()


def _tell_unless_hung_up(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The thread that hands tensors over reports an interrupted training process with a traceback."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def problem_of_workers(error: BaseException, started: Sequence[BaseProcess]) -> str | None:
    """Say what is wrong with the workers, and the way out, in one line.

    Args:
        error: what reading from them raised.
        started: the workers, none if this process reads alone.

    Returns:
        None if the error is not about them.
    """
    text, number = str(error), getattr(error, "errno", None)
    ended = _first_to_fail(started, wait=isinstance(error, EOFError | ConnectionError | FileNotFoundError))
    how = None if ended is None or ended.exitcode is None else ended.exitcode
    if how == -signal.SIGBUS or "shared memory" in text or "torch_shm_manager" in text or "(shm)" in text:
        return (
            "shared memory is full (/dev/shm), through which processes that read images pass them on: use fewer --workers or 0, a smaller"
            " --batch-size, or make it larger (docker run --shm-size=2g)"
        )
    if ended is not None and how is not None:
        by = f"was killed ({signal.strsignal(-how)})" if how < 0 else f"ended with exit code {how}"
        return f"process {ended.pid}, which reads images, {by}, probably out of memory: use fewer --workers or 0, or a smaller --batch-size"
    if number == errno.ENOMEM or "Caught MemoryError in DataLoader worker" in text or "Cannot allocate memory" in text:
        return "out of memory in a process that reads images: use fewer --workers or 0, or a smaller --batch-size"
    if number in (errno.EMFILE, errno.ENFILE, errno.EAGAIN) or "Too many open files" in text:
        return f"processes that read images cannot be started ({first_line(error)}): use fewer --workers or 0, or raise `ulimit -n`"
    return None


def _first_to_fail(started: Sequence[BaseProcess], wait: bool) -> BaseProcess | None:
    ends = time.monotonic() + (_ENDING_S if wait and started else 0.0)
    while True:
        failed = next((worker for worker in started if worker.exitcode), None)
        if failed is not None or time.monotonic() >= ends:
            return failed
        time.sleep(0.01)
