"""How freed memory is kept for the next batch."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Of mallopt(3)."""

_MOST = 2**31 - 1


def keep_freed_memory() -> None:
    """Let glibc hand out again what was freed, instead of giving every large tensor's pages back and fetching fresh ones.

    PyTorch on a CPU allocates each layer's output anew. Pieces of many megabytes come from the kernel page by page, each of them
    zeroed: with batches of 32 pictures that takes as long as ResNet-50 itself. Elsewhere than with glibc this does nothing.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _MOST)
