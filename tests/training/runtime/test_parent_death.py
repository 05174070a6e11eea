"""Killed trainings leave no lock and no process behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from tests.helpers.training.reading_work import read
from tlcli.contract.errors import ImageError, ResourceError, SettingsError
from tlcli.contract.files.atomic_folder import temporary_folder, whole_folder
from tlcli.contract.files.file_lock import LocksUnsupportedError
from tlcli.training.data import dataloader_workers
from tlcli.training.features.row_file import growing_rows
from tlcli.training.runs.run_folder import RunFolder

REPOSITORY = Path(__file__).parents[3]


class Work(NamedTuple):
    process: subprocess.Popen[str]
    workers: list[int]
    others: list[int]


@contextmanager
def working(run: Path, method: str = "fork") -> Iterator[Work]:
    """Start a training that reads images; end its other processes when the block ends."""
    command = [sys.executable, "-m", "tests.helpers.training.reading_work", str(run), method, "slow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield Work(process, **json.loads(line))
        finally:
            process.kill()
            for other in json.loads(line)["others"]:
                with suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)


def is_alive(process: int) -> bool:
    """Return True unless the process has ended; a zombie has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_killed_training_frees_its_lock_at_once_and_its_workers_end(tmp_path: Path, method: str) -> None:
    with working(tmp_path, method) as work:
        assert len(work.workers) == 2
        with pytest.raises(SettingsError, match="another process is training here"), RunFolder(tmp_path).claimed():
            pass
        work.process.kill()
        work.process.wait()
        with RunFolder(tmp_path).claimed():
            assert all(map(is_alive, work.others)), "other processes, started while the run was claimed, do not hold the lock"
            ends = time.monotonic() + 3
            while any(map(is_alive, work.workers)) and time.monotonic() < ends:
                time.sleep(0.01)
            assert not any(map(is_alive, work.workers))


AGENT = """
import os, subprocess, sys, time
child = "import time, torch; from tlcli.training.runtime import distributed as runtime\\n"
child += "runtime.distributed.init_process_group = lambda *_: (print(runtime.os.getpid(), flush=True), time.sleep(60))\\n"
child += "with runtime.join_processes(torch.device('cpu')): pass"
variables = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
subprocess.run([sys.executable, "-c", child], env={**os.environ, **variables})
"""


def test_processes_of_torchrun_end_when_it_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", AGENT], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as agent:
        assert agent.stdout is not None
        process = int(agent.stdout.readline())
        assert is_alive(process)
        agent.kill()
        agent.wait()
        ends = time.monotonic() + 3
        while is_alive(process) and time.monotonic() < ends:
            time.sleep(0.01)
        assert not is_alive(process)


def test_ctrl_c_reaches_workers_too_and_they_print_nothing(tmp_path: Path) -> None:
    """A terminal sends SIGINT to all processes of the command."""
    with working(tmp_path) as work:
        for process in (*work.workers, work.process.pid):
            os.kill(process, signal.SIGINT)
        work.process.wait(timeout=20)
        for other in work.others:  # they hold its standard error open, too
            os.kill(other, signal.SIGKILL)
        _, stderr = work.process.communicate(timeout=20)
    assert stderr.count("Traceback") == 1, stderr  # from the training itself, which runs without the command line's error handling
    assert "DataLoader worker" not in stderr


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (
            "SIGKILL",
            r"worker process \d+ was killed \(Killed\), probably out of memory: use fewer --workers",
        ),
        ("SIGBUS", r"shared memory is full \(/dev/shm\), .* use fewer --workers or 0"),
        ("MemoryError", "out of memory in a worker process: use fewer --workers"),
    ],
)
def test_a_worker_that_dies_is_reported_in_one_line(behaviour: str, message: str) -> None:
    with pytest.raises(ResourceError, match=message) as error:
        read(behaviour)
    assert "\n" not in str(error.value)
    assert not isinstance(error.value, ImageError)


FULL_SHARED_MEMORY = """
mount -t tmpfs -o size=64k none /dev/shm &&
exec "$0" -c "
from tests.helpers.training.reading_work import *
from tlcli.contract.errors import ResourceError
try:
    for _ in image_batches(drawn('fine'), Preprocessing(height=512, width=512), batch_size=16, workers=2):
        pass
except ResourceError as error:
    print(error)
"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_full_shared_memory_is_reported_in_one_line() -> None:
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", FULL_SHARED_MEMORY, sys.executable],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=60,
        check=False,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("mounting is not allowed here")
    assert done.stdout.startswith("shared memory is full (/dev/shm)"), done.stderr
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


# ---- file systems without locks


def test_training_on_a_file_system_without_locks_works_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    said: list[str] = []
    with RunFolder(tmp_path).claimed(said.append):
        pass
    assert len(said) == 1
    assert "cannot be locked (Operation not supported): do not resume this run from another process meanwhile" in said[0]
    with whole_folder(tmp_path / "data") as temporary:
        (temporary / "file").write_text("")
    assert (tmp_path / "data" / "file").exists()


def test_if_the_folder_cannot_be_locked_a_file_in_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS, for example, locks only files that are open for writing."""
    import fcntl

    plain = fcntl.flock

    def of_nfs(descriptor: int, operation: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        plain(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", of_nfs)
    said: list[str] = []
    with (
        RunFolder(tmp_path).claimed(said.append),
        pytest.raises(SettingsError, match="another process is training here"),
        RunFolder(tmp_path).claimed(said.append),
    ):
        pass
    with RunFolder(tmp_path).claimed(said.append):
        pass
    assert said == []


def test_without_locks_two_processes_can_compute_the_same_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    def unsupported(descriptor: int) -> bool:
        raise LocksUnsupportedError(95, "Operation not supported")

    monkeypatch.setattr("tlcli.training.features.row_file.try_lock", unsupported)
    ones, twos = (np.full((2, 3), value, dtype=np.float32) for value in (1, 2))
    path = tmp_path / "features.npy"
    with growing_rows(path, 2) as first, growing_rows(path, 2) as second:
        assert first is not None
        assert second is not None
        first.append(ones)
        second.append(twos[:1])
        second.append(twos[1:])
    assert np.load(path).tolist() in (ones.tolist(), twos.tolist())
    assert [left.name for left in tmp_path.iterdir()] == ["features.npy"]


# ---- leftovers of killed processes

LEAVE = """
import sys, time
from pathlib import Path
from tlcli.contract.files.atomic_folder import temporary_folder
with temporary_folder(Path(sys.argv[1]), ".export-") as folder:
    (folder / "model.onnx").write_bytes(b"half")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_a_temporary_folder_is_removed_only_after_its_process_was_killed(tmp_path: Path) -> None:
    (tmp_path / ".export-notes").mkdir()  # a user's folder: the project never creates such a name
    with subprocess.Popen([sys.executable, "-c", LEAVE, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        theirs = Path(process.stdout.readline().strip())
        with temporary_folder(tmp_path, ".export-"):
            assert (theirs / "model.onnx").exists(), "it is still being written"
        process.kill()
        process.wait()
        with temporary_folder(tmp_path, ".export-") as mine:
            assert not theirs.exists()
            assert mine.exists()
    assert [left.name for left in tmp_path.iterdir()] == [".export-notes"]


def test_pytorchs_handler_does_not_interrupt_the_search_for_the_worker_that_died(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = SimpleNamespace(exitcode=None)

    def interrupted(_: float) -> None:
        worker.exitcode = -signal.SIGKILL
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    monkeypatch.setattr(dataloader_workers.time, "sleep", interrupted)
    assert dataloader_workers._first_to_fail([worker], wait=True) is worker  # type: ignore[list-item]
