"""Processes that end when their parent does, however that ends: a killed training leaves none behind."""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1
"""See prctl(2)."""


def end_with_parent() -> None:
    """End this process, a child of `multiprocessing` or another, as soon as its parent is gone.

    Where the kernel offers that (Linux) it kills this process; elsewhere, and for a child of a fork server, a thread waits
    for the end of the process that asked for this one.
    """
    creator = multiprocessing.parent_process()
    if sys.platform == "linux" and (creator is None or creator.pid == os.getppid()):
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the kernel was asked
            os._exit(1)
    elif creator is not None:
        threading.Thread(target=_wait_and_end, name="end with parent", daemon=True).start()


def _wait_and_end() -> None:
    creator = multiprocessing.parent_process()
    assert creator is not None
    try:
        # Its sentinel is a pipe, which stays open as long as any process that it has forked has the other end.
        ended = os.pidfd_open(creator.pid) if sys.platform == "linux" and creator.pid else creator.sentinel
        multiprocessing.connection.wait([ended])
    except ProcessLookupError:
        pass
    os._exit(1)
