"""Termination of child processes with their parent, even if it is killed, so that training leaves no orphan processes."""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1
"""Option number of `PR_SET_PDEATHSIG`, see prctl(2)."""


def end_with_parent() -> None:
    """Make this process exit as soon as its parent exits, whether or not `multiprocessing` started it.

    On Linux, the kernel kills this process (`PR_SET_PDEATHSIG`). On other systems, and for children of a fork server, a thread waits
    until the process that requested this one exits.
    """
    creator = multiprocessing.parent_process()
    if sys.platform == "linux" and (creator is None or creator.pid == os.getppid()):
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the parent ended before the call
            os._exit(1)
    elif creator is not None:
        threading.Thread(target=_wait_and_end, name="end with parent", daemon=True).start()


def _wait_and_end() -> None:
    creator = multiprocessing.parent_process()
    assert creator is not None
    try:
        # The sentinel is a pipe that stays open while any process forked by the creator holds the other end. A pidfd avoids this.
        ended = os.pidfd_open(creator.pid) if sys.platform == "linux" and creator.pid else creator.sentinel
        multiprocessing.connection.wait([ended])
    except ProcessLookupError:
        pass
    os._exit(1)
