"""Rows on disk: whole or gone on with, one writer at a time, the least recently used taken away first."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tlcli.contract.errors import ImageError, SettingsError
from tlcli.training.features.row_file import growing_rows, most_bytes, open_rows, prune

ROWS = np.arange(12, dtype=np.float32).reshape(6, 2)


def test_what_is_appended_is_what_numpy_reads(tmp_path: Path) -> None:
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
def test_what_was_written_before_an_interruption_is_there_the_next_time(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "key.npy"
    with pytest.raises(type(error)):
        write_and_raise(path, ROWS[:4], error)
    with growing_rows(path, 6) as rows:
        assert rows is not None
        assert rows.present == 4
        rows.cut(2)
        rows.append(ROWS[2:])
    np.testing.assert_array_equal(np.load(path), ROWS)


def test_an_error_of_ours_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        write_and_raise(tmp_path / "key.npy", ROWS[:4], ImageError("cannot be read"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "beginning", [b"", b"nonsense", b"\x93NUMPY\x01", np.lib.format.magic(2, 0)], ids=["empty", "nonsense", "cut", "2.0"]
)
def test_what_is_no_beginning_is_written_anew(tmp_path: Path, beginning: bytes) -> None:
    (tmp_path / "key.partial").write_bytes(beginning)
    with growing_rows(tmp_path / "key.npy", 6) as rows:
        assert rows is not None
        assert rows.present == 0
        rows.cut(0)
        rows.append(ROWS)
    np.testing.assert_array_equal(np.load(tmp_path / "key.npy"), ROWS)


def test_of_two_that_want_the_same_one_computes_and_the_other_waits(tmp_path: Path) -> None:
    path = tmp_path / "key.npy"
    waits = threading.Event()
    got: list[object] = []

    def second() -> None:
        with growing_rows(path, 6, waits.set) as rows:
            got.append(rows)

    thread = threading.Thread(target=second)
    with growing_rows(path, 6) as rows:
        assert rows is not None
        rows.append(ROWS[:3])
        thread.start()
        assert waits.wait(30)
        rows.append(ROWS[3:])
        assert got == []
    thread.join(30)
    assert got == [None]  # there is nothing left to do
    np.testing.assert_array_equal(np.load(path), ROWS)
    assert list(tmp_path.iterdir()) == [path]


def test_who_waits_takes_over_from_one_that_failed(tmp_path: Path) -> None:
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


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    for name, used in (("old", 1), ("older", 0), ("new", 3), ("middle", 2)):
        put(tmp_path / f"{name}.npy", used)
    prune(tmp_path, 4000, [])
    assert len(list(tmp_path.iterdir())) == 4
    prune(tmp_path, 2500, [])
    assert {path.stem for path in tmp_path.iterdir()} == {"new", "middle"}
    prune(tmp_path, 0, [tmp_path / "middle.npy"])
    assert {path.stem for path in tmp_path.iterdir()} == {"middle"}


def test_reading_is_using(tmp_path: Path) -> None:
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", ROWS)
        os.utime(tmp_path / f"{name}.npy", (0, 0))
    assert open_rows(tmp_path / "a.npy", 6) is not None
    prune(tmp_path, 200, [])
    assert [path.stem for path in tmp_path.iterdir()] == ["a"]


def test_what_was_given_up_is_pruned_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    put(tmp_path / "given up.partial", used=0)
    with growing_rows(tmp_path / "written.npy", 6) as rows:
        assert rows is not None
        rows.append(ROWS[:3])
        os.utime(tmp_path / "written.partial", (0, 0))
        prune(tmp_path, 0, [])
        assert [path.name for path in tmp_path.iterdir()] == ["written.partial"]
        rows.append(ROWS[3:])
    np.testing.assert_array_equal(np.load(tmp_path / "written.npy"), ROWS)


@pytest.mark.parametrize(("given", "bytes_"), [(None, 10**10), ("", 10**10), ("0", 0), ("0.5", 5 * 10**8), ("20", 2 * 10**10)])
def test_the_limit_is_in_gigabytes(monkeypatch: pytest.MonkeyPatch, given: str | None, bytes_: int) -> None:
    if given is None:
        monkeypatch.delenv("TLCLI_CACHE_GB", raising=False)
    else:
        monkeypatch.setenv("TLCLI_CACHE_GB", given)
    assert most_bytes() == bytes_


@pytest.mark.parametrize("given", ["much", "-1", "nan", "inf", "10 GB"])
def test_a_limit_that_is_no_number_is_told(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("TLCLI_CACHE_GB", given)
    with pytest.raises(SettingsError, match=f"^TLCLI_CACHE_GB={given}: expected a number of gigabytes, 0 or more$"):
        most_bytes()
