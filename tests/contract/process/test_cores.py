"""A container's CPU limit is found in both versions of control groups, in the group itself or above."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tlcli.contract.process import cores
from tlcli.contract.process.cores import usable_cores

ALL = 2.0**31


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"cpu.{name}").write_text(text + "\n")


def quota(folder: Path, own: str) -> float:
    (folder / "own").write_text(own)
    return cores._quota_cores(folder / "cgroup", folder / "own")


def test_version_2(tmp_path: Path) -> None:
    write(tmp_path / "cgroup", max="max 100000")
    write(tmp_path / "cgroup/pod/container", max="150000 100000")
    assert quota(tmp_path, "0::/pod/container\n") == 1.5
    assert quota(tmp_path, "0::/pod\n") == ALL
    write(tmp_path / "cgroup/pod", max="50000 100000")
    assert quota(tmp_path, "0::/pod/container\n") == 0.5, "a group has no more than the one that it lies in"
    write(tmp_path / "cgroup", max="25000 100000")
    assert quota(tmp_path, "0::/\n") == 0.25, "inside a container its own group is the root"


def test_version_1(tmp_path: Path) -> None:
    cpu = tmp_path / "cgroup/cpu/docker/one"  # on a machine a link to cpu,cpuacct
    own = "12:memory:/docker/one\n5:cpu,cpuacct:/docker/one\n1:name=systemd:/docker/one\n0::/system.slice\n"
    write(cpu, cfs_quota_us="-1", cfs_period_us="100000")
    assert quota(tmp_path, own) == ALL
    write(cpu, cfs_quota_us="300000")
    assert quota(tmp_path, own) == 3.0


def test_inside_a_container_of_version_1_the_path_is_the_machines(tmp_path: Path) -> None:
    write(tmp_path / "cgroup/cpu", cfs_quota_us="200000", cfs_period_us="100000")
    assert quota(tmp_path, "5:cpu:/docker/one\n") == 2.0


@pytest.mark.parametrize("own", ["", "nonsense\n", "0::/not/there\n"])
def test_nothing_is_told(tmp_path: Path, own: str) -> None:
    assert quota(tmp_path, own) == ALL


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")
def test_the_smaller_of_both_and_at_least_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda number: set(range(8)))
    for allowed, expected in ((ALL, 8), (2.0, 2), (1.5, 2), (0.1, 1), (20.0, 8)):
        monkeypatch.setattr(cores, "_quota_cores", lambda allowed=allowed: allowed)
        assert usable_cores() == expected


def test_there_is_one_at_least() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_a_share_of_the_machine_is_what_counts() -> None:
    program = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    program += "from tlcli.contract.process.cores import usable_cores; print(usable_cores())"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "1"
