"""Policies for freed memory, set with mallopt(3). They apply to glibc; on other C libraries nothing is done."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
"""Parameters of mallopt(3)."""

_LARGE_BYTES = 1 << 20
"""Blocks of at least this size are mapped separately, so that freeing them returns them to the system. By default glibc raises the
threshold with each large block that is freed, and keeps the memory of large images: after 20,000 damaged images and messages,
10 to 150 MB remained allocated; with a fixed threshold, 13 MB, once."""

_MOST = 2**31 - 1


def return_freed_memory() -> None:
    """Return large blocks to the system as soon as they are freed, so that a server's memory stays level."""
    if (libc := _libc()) is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE_BYTES)


def trim_freed_memory() -> None:
    """Return free memory between used blocks to the system, for example after a model was unloaded."""
    if (libc := _libc()) is not None:
        libc.malloc_trim(0)


def keep_freed_memory() -> None:
    """Keep freed memory for the next batch, in a process that runs a PyTorch network on a CPU.

    PyTorch allocates each layer's output anew. By default glibc gets blocks of many megabytes from the kernel each time, page by
    page, each page zeroed, and returns them when they are freed: for ResNet-50 in batches of 32 that takes as long as the network.
    """
    if (libc := _libc()) is not None:
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _MOST)


def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None
    except OSError:  # another C library
        return None
