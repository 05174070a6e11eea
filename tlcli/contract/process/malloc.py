"""Two policies for freed memory, set by mallopt(3). glibc alone; elsewhere nothing is done."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
"""Parameters of mallopt(3)."""

_LARGE_BYTES = 1 << 20
"""Pieces from this size on are the system's own. Left to itself, glibc raises the limit with each large piece that is freed, and
the memory of large images stays: 20,000 damaged images and messages left 10 to 150 MB behind; with this, 13 MB, once."""

_MOST = 2**31 - 1


def return_freed_memory() -> None:
    """Return large pieces of memory to the system when they are freed: for a server, whose memory stays level."""
    if (libc := _libc()) is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE_BYTES)


def trim_freed_memory() -> None:
    """Return to the system what is free between pieces in use: after a model is unloaded."""
    if (libc := _libc()) is not None:
        libc.malloc_trim(0)


def keep_freed_memory() -> None:
    """Keep freed memory for the next batch: for a process that runs a network in PyTorch on a CPU.

    Each layer's output is allocated anew. Left to itself, glibc fetches what has many megabytes from the kernel each time, page by
    page, each page zeroed, and returns it when it is freed: for ResNet-50 in batches of 32 that takes as long as the network.
    """
    if (libc := _libc()) is not None:
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _MOST)


def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None
    except OSError:  # another C library
        return None
