"""Policies for freed memory, set with mallopt(3). They apply to glibc; with other C libraries, the functions do nothing."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
"""Parameters of mallopt(3)."""

_LARGE_BYTES = 1 << 20
"""Minimum size of blocks that are mapped separately, so that freeing them returns them to the system. By default, glibc raises this
threshold whenever a larger mapped block is freed, and keeps the memory of large images. After 20,000 damaged images and messages,
10 to 150 MB remained allocated; with a fixed threshold, a one-time 13 MB."""

_MOST = 2**31 - 1


def return_freed_memory() -> None:
    """Make malloc return large blocks to the system as soon as they are freed, so that a server's memory use stays stable."""
    if (libc := _libc()) is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE_BYTES)


def trim_freed_memory() -> None:
    """Release free heap memory between used blocks to the operating system, for example after unloading a model."""
    if (libc := _libc()) is not None:
        libc.malloc_trim(0)


def keep_freed_memory() -> None:
    """Make malloc keep freed memory for the next batch, for a process that runs a PyTorch network on a CPU.

    PyTorch allocates a new buffer for each layer's output. By default, glibc requests blocks of many megabytes from the kernel each
    time, which zeroes them page by page, and returns them when they are freed. For ResNet-50 with a batch size of 32, this takes as
    long as the network itself.
    """
    if (libc := _libc()) is not None:
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _MOST)


def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None
    except OSError:  # another C library
        return None
