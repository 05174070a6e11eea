"""File locks held by this process alone, released when it ends.

A `flock` belongs to an open file, which forked processes share: a data loader's worker that outlives its killed parent
would keep the lock. Here each forked process gives up its share at once, and a process that runs another program never
has one (`O_CLOEXEC`).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_held: set[int] = set()
"""Locked descriptors of this process."""


class LocksUnsupportedError(OSError):
    """A file system without locks, such as some network file systems."""


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
    """Hide a descriptor from processes that are forked within the block: there it refers to `/dev/null`."""
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
    """Replace the descriptors by `/dev/null`.

    Closing them is not safe: a Python file object may still own the number, and would close whatever file gets it next.
    """
    if not _held:
        return
    with suppress(OSError):
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for descriptor in _held:
            os.dup2(null, descriptor, inheritable=False)
        os.close(null)
        _held.clear()
    for descriptor in _held:  # the process has no free descriptor for `/dev/null`
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_give_up_in_child)
