"""File locks that belong to this process alone and are released when it ends.

A `flock` belongs to an open file, which forked processes share, so a data loader worker that outlives its killed parent would keep the
lock. With this module, each forked process gives up its share immediately, and a process that executes another program never inherits one
(`O_CLOEXEC`).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_held: set[int] = set()
"""Descriptors that forked processes replace with `/dev/null`."""


class LocksUnsupportedError(OSError):
    """A file system without locks, such as some network file systems."""


def try_lock(descriptor: int) -> bool:
    """Lock an open file for this process without waiting.

    Returns:
        True if the lock was acquired, False if another process holds it.

    Raises:
        LocksUnsupportedError: the file system does not support locks.
    """
    return _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def wait_for_lock(descriptor: int) -> None:
    """Lock an open file for this process, waiting until no other process holds the lock.

    Raises:
        LocksUnsupportedError: the file system does not support locks.
    """
    _lock(descriptor, fcntl.LOCK_EX)


@contextmanager
def unshared(descriptor: int) -> Iterator[None]:
    """Hide a descriptor from processes that are forked within the block: in these processes, it refers to `/dev/null`."""
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
    """Redirect the descriptors to `/dev/null` in a forked process.

    Closing them would not be safe: a Python file object may still own a descriptor's number, and would later close any file that reuses it.
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
