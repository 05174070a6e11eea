"""File locks that belong to this process alone, and end with it.

A `flock` belongs to an open file, which a forked process shares: a data loader's worker that outlives its killed parent
would keep it. Here each forked process gives up its share at once; a process that runs another program never has one
(`O_CLOEXEC`).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_held: set[int] = set()
"""Descriptors of this process that hold a lock."""


class LocksUnsupportedError(OSError):
    """The file system has no locks, as some network file systems do not."""


def try_lock(descriptor: int) -> bool:
    """Lock an open file for this process, without waiting.

    Returns:
        False if another process holds the lock.

    Raises:
        LocksUnsupportedError: the file system has no locks.
    """
    return _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def wait_for_lock(descriptor: int) -> None:
    """Lock an open file for this process as soon as no other process holds the lock.

    Raises:
        LocksUnsupportedError: the file system has no locks.
    """
    _lock(descriptor, fcntl.LOCK_EX)


@contextmanager
def unshared(descriptor: int) -> Iterator[None]:
    """Keep a descriptor from the processes that are forked within the block: in them it is `/dev/null`."""
    _held.add(descriptor)
    try:
        yield
    finally:
        _held.discard(descriptor)


def _lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        raise LocksUnsupportedError(error.errno, error.strerror) from error
    return True


def _give_up_in_child() -> None:
    """Replace rather than close: a Python file object may still own the number, and would close whatever gets it next."""
    if not _held:
        return
    with suppress(OSError):
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for descriptor in _held:
            os.dup2(nothing, descriptor, inheritable=False)
        os.close(nothing)
        _held.clear()
    for descriptor in _held:  # no descriptor was left for `/dev/null`
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_give_up_in_child)
