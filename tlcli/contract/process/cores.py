"""Detection of the number of CPU cores that this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use, at least 1, based on its CPU affinity and cgroup quota.

    A container limited to the CPU time of two cores (`docker run --cpus 2`, Kubernetes limits) sees all cores of its machine. With one
    thread per visible core, it would be throttled for most of each 100 ms period.
    """
    if hasattr(os, "sched_getaffinity"):
        return max(1, min(len(os.sched_getaffinity(0)), math.ceil(_quota_cores())))
    return os.cpu_count() or 1  # macOS and Windows do not report affinity


def _quota_cores(mounted: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Return the cgroup CPU quota in cores, or 2**31 without a limit.

    See the kernel documents `cgroup-v2` and `sched-bwc`.
    """
    return min(_quotas(mounted, own), default=2.0**31)


def _quotas(mounted: Path, own: Path) -> Iterator[float]:
    for group in _groups(mounted, own):
        time, period = _words(group / "cpu.max", "max 0")  # version 2
        if time == "max":
            time, period = _words(group / "cpu.cfs_quota_us", "-1")[0], _words(group / "cpu.cfs_period_us", "0")[0]
        if int(time) > 0 and int(period) > 0:
            yield int(time) / int(period)


def _groups(mounted: Path, own: Path) -> Iterator[Path]:
    """Yield the cgroups of this process and their ancestors, each of which may set a limit."""
    for line in _words(own, ""):
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers or "cpu" in controllers.split(","):
            group = Path(mounted, "cpu" if controllers else "", path.lstrip("/"))
            yield from (group, *group.parents[: len(group.relative_to(mounted).parts)])


def _words(file: Path, default: str) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return default.split()
