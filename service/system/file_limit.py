"""Limit on open files (`ulimit -n`), and the number of connections that it allows."""

from __future__ import annotations

import contextlib
import logging
import os

logger = logging.getLogger(__name__)

_KEPT = 24
"""Number of open files reserved for models, certificates, logs and libraries."""

_ENOUGH = 65536
_LEAST = 4


def raise_limit() -> None:
    """Raise the soft limit on open files to the hard limit, at most 65,536. Shells start processes with a lower soft limit."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        target = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
        if soft != resource.RLIM_INFINITY and soft < target:
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))


def fitting_connections(most: int, protocols: int) -> int:
    """Return the number of connections that each protocol can keep open within the file limit, at most `most`."""
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        in_use = len(os.listdir("/proc/self/fd"))
    except (ImportError, OSError):
        return most
    if soft == resource.RLIM_INFINITY:
        return most
    fitting = max(_LEAST, (soft - in_use - _KEPT) // protocols)
    if fitting < most:
        logger.warning("accepting at most %d connections instead of %d: this process may open %d files (ulimit -n)", fitting, most, soft)
    return min(most, fitting)
