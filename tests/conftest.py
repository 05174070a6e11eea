"""What every test may count on: a cache of its own, and the shared data where there is any."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tlcli.contract.files.atomic_folder import whole_folder

REPOSITORY = Path(__file__).resolve().parents[1]
UNPACKED = Path.home() / ".cache" / "tlcli-tests"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache, nor the folder where the user keeps data sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLCLI_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("TLCLI_DATA", raising=False)
        patch.delenv("COLUMNS", raising=False)  # tables would be wrapped to it
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and weights: `$TLCLI_SHARED_DATA`, else `../shared/data` beside the repository."""
    folder = Path(os.environ.get("TLCLI_SHARED_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        problem = f"no shared data at {folder}: set TLCLI_SHARED_DATA"
        if os.environ.get("TLCLI_REQUIRE_SHARED_DATA") == "1":
            pytest.fail(problem)
        pytest.skip(problem)
    return folder


@pytest.fixture(scope="session")
def unpacked(shared_data: Path) -> Callable[[str], Path]:
    """`unpacked("cifar10")`: the folder of that shared archive, `{train,test}/<class>/<file>`; unpacked once and kept."""

    def folder_of(name: str) -> Path:
        (archive,) = shared_data.glob(f"{name}.tar*")
        kept = UNPACKED / f"{name}-{archive.stat().st_size}"
        if not kept.is_dir():
            with whole_folder(kept) as temporary, tarfile.open(archive) as packed:
                packed.extractall(temporary, filter="data")
        return kept / name

    return folder_of
