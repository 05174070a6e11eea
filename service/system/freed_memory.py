"""A server's memory stays level: what is freed goes back to the system. glibc alone; elsewhere nothing is done."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""

_LARGE_BYTES = 1 << 20
"""Pieces from this size on are the system's own. Left to itself, glibc moves the border up with each large piece that is freed, and
what large pictures took stays: 20,000 damaged pictures and messages left 10 to 150 MB, by chance; so 13 MB, once."""


def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None
    except OSError:  # another C library
        return None


def keep_level() -> None:
    """For the process of a server: large pieces of memory are given back when they are freed."""
    if (libc := _libc()) is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE_BYTES)


def give_back() -> None:
    """Hand back what lies freed between pieces that are still in use, as after a model is unloaded."""
    if (libc := _libc()) is not None:
        libc.malloc_trim(0)
