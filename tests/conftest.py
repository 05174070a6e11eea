"""Fixtures and marks of all tests: a cache of their own, the shared data, and which tests run alone."""

from __future__ import annotations

import gc
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tlcli.contract.files.atomic_folder import whole_folder

REPOSITORY = Path(__file__).resolve().parents[1]
UNPACKED = Path.home() / ".cache" / "tlcli-tests"
ALONE = (
    "deploy/test_other_servers.py",
    "deploy/test_training.py",
    "e2e/test_readme.py",
    "e2e/test_road.py",
    "ray/",
    "service/client/test_load_test.py",
    "service/client/test_spread.py",
    "service/decoding/test_decode_process.py",
    "service/decoding/test_workers_stuck.py",
    "service/execution/",
    "service/inference/test_score_cam.py",
    "service/inference/test_time_limit.py",
    "service/repository/",
    "service/rest/test_lifecycle.py",
    "service/rest/test_refusals.py",
    "service/rest/test_slow_connections.py",
    "service/rpc/",
    "service/telemetry/test_gpu_memory.py",
    "service/telemetry/test_logs.py",
    "service/test_cancelled.py",
    "service/test_handover.py",
    "service/test_lifecycle.py",
    "service/test_memory_limits.py",
    "service/test_mixed_load.py",
    "service/test_reload.py",
)
"""Tests that watch the clock or the memory of the process, or train with every core: `make test` runs them one after the other, with the
mark `alone`, which single tests of other files have too. All others share the machine, two at a time."""

FIRST = (
    "e2e/",
    "exports/",
)
"""Tests that take longest, which begin first: begun last, they would leave a core without work at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that run alone, and put those that take longest first."""
    for item in items:
        if _name(item).startswith(ALONE):
            item.add_marker("alone")
    items.sort(key=lambda item: next((place for place, name in enumerate(FIRST) if _name(item).startswith(name)), len(FIRST)))


def _name(item: pytest.Item) -> str:
    """Return the path of a test's file below `tests`, or a path outside."""
    return os.path.relpath(item.path, REPOSITORY / "tests").replace(os.sep, "/")


def pytest_collection_finish() -> None:
    """Exempt the tests and the modules that they import from garbage collection, which would visit them all again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests away from the user's cache, and from the folder where the user keeps data sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLCLI_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("TLCLI_DATA", raising=False)
        patch.delenv("COLUMNS", raising=False)  # tables would be wrapped to it
        yield


@pytest.fixture(scope="session", autouse=True)
def _fast_exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let exports share PyTorch's table of ONNX functions, and the graphs of identical networks. Without PyTorch, import none for that."""
    if "torch" not in sys.modules:
        yield
        return
    from tests.helpers.exports.flat_graphs import cached_flat_graphs
    from tests.helpers.exports.torchlib import cached_torchlib

    base = tmp_path_factory.getbasetemp()
    with cached_torchlib(), cached_flat_graphs((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "flat-graphs"):
        yield


@pytest.fixture(scope="module")
def blank_figures() -> Iterator[None]:
    """Replace the figures of runs by blank images of eight pixels: drawing takes longer than training a tiny network.

    The figures themselves, and whole runs with them, are tested elsewhere: `training/reports`, `training/runs/test_load_run.py`, `e2e`.
    """
    from tlcli.training.settings.run_file_names import CONFUSION, CURVES, MISTAKES, RELIABILITY

    def draw_figures(folder: Path, *_: object) -> None:
        for name in (CURVES, CONFUSION, RELIABILITY, MISTAKES):
            Image.new("RGB", (8, 8), "white").save(folder / name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tlcli.training.finetune_run.draw_figures", draw_figures)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real images and weights: `$TLCLI_SHARED_DATA`, else `../shared/data` beside the repository."""
    folder = Path(os.environ.get("TLCLI_SHARED_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        problem = f"no shared data at {folder}: set TLCLI_SHARED_DATA"
        if os.environ.get("TLCLI_REQUIRE_SHARED_DATA") == "1":
            pytest.fail(problem)
        pytest.skip(problem)
    return folder


@pytest.fixture(scope="session")
def unpacked(shared_data: Path) -> Callable[[str], Path]:
    """Return a function from the name of a shared archive to its folder, `{train,test}/<class>/<file>`; unpacked once and kept."""

    def folder_of(name: str) -> Path:
        (archive,) = shared_data.glob(f"{name}.tar*")
        kept = UNPACKED / f"{name}-{archive.stat().st_size}"
        if not kept.is_dir():
            with whole_folder(kept) as temporary, tarfile.open(archive) as packed:
                packed.extractall(temporary, filter="data")
        return kept / name

    return folder_of
