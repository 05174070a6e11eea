"""Number of connections that fit into the files that this process may have open (`ulimit -n`)."""

from __future__ import annotations

import contextlib
import logging
import os

logger = logging.getLogger(__name__)

_KEPT = 24
"""Files for models, certificates, logs and what libraries open."""

_ENOUGH = 65536
_LEAST = 4


def raise_limit() -> None:
    """Take as many files as this process may have: shells begin with fewer."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def fitting_connections(most: int, protocols: int) -> int:
    """Return how many of `most` connections each protocol can have open."""
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = len(os.listdir("/proc/self/fd"))
    except (ImportError, OSError):
        return most
    if soft == resource.RLIM_INFINITY:
        return most
    fitting = max(_LEAST, (soft - taken - _KEPT) // protocols)
    if fitting < most:
        logger.warning("at most %d connections are taken, not %d: this process may have %d files open (ulimit -n)", fitting, most, soft)
    return min(most, fitting)
