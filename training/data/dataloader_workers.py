"""Startup, shutdown and error messages of PyTorch `DataLoader` worker processes."""

from __future__ import annotations

import errno
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from types import TracebackType

from tlcli.contract.errors import first_line
from tlcli.training.runtime.parent_death import end_with_parent

_INTERRUPTS = {signal.SIGINT, signal.SIGTERM}

_ENDING_S = 2.0
"""Time in seconds to wait for a worker to exit after its last message was truncated."""


@contextmanager
def starting_workers(started: list[BaseProcess]) -> Iterator[None]:
    """Append the workers started within the block to `started`. SIGINT and SIGTERM are blocked inside the block.

    Blocking the signals prevents a traceback from a worker that is interrupted before `begin_worker` runs. PyTorch's SIGCHLD handler
    is removed because it raises an error at an arbitrary line of this process when a worker exits. The loader itself detects the exit
    within seconds, at a point where the error can be handled.
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
    """Initialize a worker: ignore Ctrl-C, exit when the training process exits, and terminate without a message on a bus error.

    The training process handles Ctrl-C for its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGBUS, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
    sys.excepthook = _print_unless_disconnected
    end_with_parent()


def _print_unless_disconnected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback, except for connection errors of the tensor transfer thread when the training process is interrupted."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def describe_worker_error(error: BaseException, started: Sequence[BaseProcess]) -> str | None:
    """Describe a worker failure in one line, including what the user can do about it.

    Args:
        error: error raised while reading from the workers.
        started: worker processes; empty if this process reads the images itself.

    Returns:
        The description, or None if the workers did not cause the error.
    """
    text, number = str(error), getattr(error, "errno", None)
    ended = _first_to_fail(started, wait=isinstance(error, EOFError | ConnectionError | FileNotFoundError))
    exit_code = None if ended is None or ended.exitcode is None else ended.exitcode
    if exit_code == -signal.SIGBUS or "shared memory" in text or "torch_shm_manager" in text or "(shm)" in text:
        return (
            "shared memory is full (/dev/shm), which worker processes need to transfer images: use fewer --workers or 0, a smaller"
            " --batch-size, or more shared memory (docker run --shm-size=2g)"
        )
    if ended is not None and exit_code is not None:
        how = f"was killed ({signal.strsignal(-exit_code)})" if exit_code < 0 else f"ended with exit code {exit_code}"
        return f"worker process {ended.pid} {how}, probably out of memory: use fewer --workers or 0, or a smaller --batch-size"
    if number == errno.ENOMEM or "Caught MemoryError in DataLoader worker" in text or "Cannot allocate memory" in text:
        return "out of memory in a worker process: use fewer --workers or 0, or a smaller --batch-size"
    if number in (errno.EMFILE, errno.ENFILE, errno.EAGAIN) or "Too many open files" in text:
        return f"worker processes cannot be started ({first_line(error)}): use fewer --workers or 0, or raise `ulimit -n`"
    return None


def _first_to_fail(started: Sequence[BaseProcess], wait: bool) -> BaseProcess | None:
    ends = time.monotonic() + (_ENDING_S if wait and started else 0.0)
    while True:
        failed = next((worker for worker in started if worker.exitcode), None)
        if failed is not None or time.monotonic() >= ends:
            return failed
        with suppress(RuntimeError):  # raised here by PyTorch's SIGCHLD handler, if another loader installed it before
            time.sleep(0.01)
