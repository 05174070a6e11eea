"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores() -> int:
    """The cores that this process may run on, at least 1: `taskset`'s share, or a container's limit, where the system tells.

    A container that may use two cores' time (`docker run --cpus 2`, Kubernetes' limits) sees all cores of its machine, and is held up
    for most of each tenth of a second if it has a thread for each.
    """
    if hasattr(os, "sched_getaffinity"):
        return max(1, min(len(os.sched_getaffinity(0)), math.ceil(_quota_cores())))
    return os.cpu_count() or 1  # macOS and Windows have no affinity to ask for


def _quota_cores(mounted: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """The time that control groups allow, in cores' (the kernel's `cgroup-v2` and `sched-bwc` documents); 2**31 if they allow all."""
    return min(_quotas(mounted, own), default=2.0**31)


def _quotas(mounted: Path, own: Path) -> Iterator[float]:
    for group in _groups(mounted, own):
        time, period = _words(group / "cpu.max", "max 0")  # version 2
        if time == "max":
            time, period = _words(group / "cpu.cfs_quota_us", "-1")[0], _words(group / "cpu.cfs_period_us", "0")[0]
        if int(time) > 0 and int(period) > 0:
            yield int(time) / int(period)


def _groups(mounted: Path, own: Path) -> Iterator[Path]:
    """Where limits may stand: this process's group, and those that it lies in."""
    for line in _words(own, ""):
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers or "cpu" in controllers.split(","):
            group = Path(mounted, "cpu" if controllers else "", path.lstrip("/"))
            yield from (group, *group.parents[: len(group.relative_to(mounted).parts)])


def _words(file: Path, otherwise: str) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return otherwise.split()
