"""Row files: complete or resumed, one writer at a time, the least recently used evicted first."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tlcli.contract.errors import ImageError, SettingsError
from tlcli.training.features.row_file import growing_rows, max_cache_bytes, open_rows, prune

ROWS = np.arange(12, dtype=np.float32).reshape(6, 2)


def test_numpy_reads_the_appended_rows(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "key.npy"
    with growing_rows(path, 6) as rows:
        assert rows is not None
        rows.append(ROWS[:4])
        assert not path.exists()
        rows.append(ROWS[4:])
    np.testing.assert_array_equal(np.load(path), ROWS)
    kept = open_rows(path, 6)
    assert kept is not None
    np.testing.assert_array_equal(kept, ROWS)
    assert list(path.parent.iterdir()) == [path]


def write_and_raise(path: Path, batch: NDArray[np.float32], error: BaseException, before: Callable[[], None] = lambda: None) -> None:
    with growing_rows(path, 6) as rows:
        assert rows is not None
        rows.append(batch)
        before()
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError()], ids=["interrupt", "no room"])
def test_rows_written_before_an_interruption_are_kept(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "key.npy"
    with pytest.raises(type(error)):
        write_and_raise(path, ROWS[:4], error)
    with growing_rows(path, 6) as rows:
        assert rows is not None
        assert rows.present == 4
        rows.truncate(2)
        rows.append(ROWS[2:])
    np.testing.assert_array_equal(np.load(path), ROWS)


def test_an_image_error_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        write_and_raise(tmp_path / "key.npy", ROWS[:4], ImageError("cannot be read"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "beginning", [b"", b"nonsense", b"\x93NUMPY\x01", np.lib.format.magic(2, 0)], ids=["empty", "nonsense", "cut", "2.0"]
)
def test_an_invalid_unfinished_file_is_overwritten(tmp_path: Path, beginning: bytes) -> None:
    (tmp_path / "key.partial").write_bytes(beginning)
    with growing_rows(tmp_path / "key.npy", 6) as rows:
        assert rows is not None
        assert rows.present == 0
        rows.truncate(0)
        rows.append(ROWS)
    np.testing.assert_array_equal(np.load(tmp_path / "key.npy"), ROWS)


def test_a_second_writer_waits_for_the_first(tmp_path: Path) -> None:
    path = tmp_path / "key.npy"
    waits = threading.Event()
    received: list[object] = []

    def second() -> None:
        with growing_rows(path, 6, waits.set) as rows:
            received.append(rows)

    thread = threading.Thread(target=second)
    with growing_rows(path, 6) as rows:
        assert rows is not None
        rows.append(ROWS[:3])
        thread.start()
        assert waits.wait(30)
        rows.append(ROWS[3:])
        assert received == []
    thread.join(30)
    assert received == [None]  # the file is complete
    np.testing.assert_array_equal(np.load(path), ROWS)
    assert list(tmp_path.iterdir()) == [path]


def test_a_waiting_writer_takes_over_from_one_that_failed(tmp_path: Path) -> None:
    path = tmp_path / "key.npy"
    waits = threading.Event()

    def second() -> None:
        with growing_rows(path, 6, waits.set) as rows:
            assert rows is not None
            assert rows.present == 0
            rows.append(ROWS)

    thread = threading.Thread(target=second)

    def begin_second() -> None:
        thread.start()
        assert waits.wait(30)

    with pytest.raises(ImageError):
        write_and_raise(path, ROWS[:3], ImageError("cannot be read"), begin_second)
    thread.join(30)
    np.testing.assert_array_equal(np.load(path), ROWS)


def put(path: Path, used: int, size: int = 1000) -> Path:
    path.write_bytes(bytes(size))
    os.utime(path, (used, used))
    return path


def test_the_least_recently_used_file_is_evicted_first(tmp_path: Path) -> None:
    for name, used in (("old", 1), ("older", 0), ("new", 3), ("middle", 2)):
        put(tmp_path / f"{name}.npy", used)
    prune(tmp_path, 4000, [])
    assert len(list(tmp_path.iterdir())) == 4
    prune(tmp_path, 2500, [])
    assert {path.stem for path in tmp_path.iterdir()} == {"new", "middle"}
    prune(tmp_path, 0, [tmp_path / "middle.npy"])
    assert {path.stem for path in tmp_path.iterdir()} == {"middle"}


def test_reading_a_file_counts_as_use(tmp_path: Path) -> None:
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", ROWS)
        os.utime(tmp_path / f"{name}.npy", (0, 0))
    assert open_rows(tmp_path / "a.npy", 6) is not None
    prune(tmp_path, 200, [])
    assert [path.stem for path in tmp_path.iterdir()] == ["a"]


def test_abandoned_files_are_pruned_and_files_being_written_are_not(tmp_path: Path) -> None:
    put(tmp_path / "abandoned.partial", used=0)
    with growing_rows(tmp_path / "written.npy", 6) as rows:
        assert rows is not None
        rows.append(ROWS[:3])
        os.utime(tmp_path / "written.partial", (0, 0))
        prune(tmp_path, 0, [])
        assert [path.name for path in tmp_path.iterdir()] == ["written.partial"]
        rows.append(ROWS[3:])
    np.testing.assert_array_equal(np.load(tmp_path / "written.npy"), ROWS)


@pytest.mark.parametrize(("value", "bytes_"), [(None, 10**10), ("", 10**10), ("0", 0), ("0.5", 5 * 10**8), ("20", 2 * 10**10)])
def test_the_limit_is_in_gigabytes(monkeypatch: pytest.MonkeyPatch, value: str | None, bytes_: int) -> None:
    if value is None:
        monkeypatch.delenv("TLCLI_CACHE_GB", raising=False)
    else:
        monkeypatch.setenv("TLCLI_CACHE_GB", value)
    assert max_cache_bytes() == bytes_


@pytest.mark.parametrize("value", ["much", "-1", "nan", "inf", "10 GB"])
def test_an_invalid_limit_is_reported(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TLCLI_CACHE_GB", value)
    with pytest.raises(SettingsError, match=f"^TLCLI_CACHE_GB={value}: expected a number of gigabytes, 0 or more$"):
        max_cache_bytes()
