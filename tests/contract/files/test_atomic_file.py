"""Readers see the old file or the new one, never a part."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tlcli.contract.errors import SettingsError
from tlcli.contract.files.atomic_file import fresh_folder, is_unwritable, whole_file


def test_written_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "model.onnx"
    with whole_file(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".onnx"
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert [child.name for child in target.parent.iterdir()] == ["model.onnx"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "results.json"
    target.write_text("old")

    def interrupted() -> None:
        with whole_file(target) as temporary:
            temporary.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert [child.name for child in tmp_path.iterdir()] == ["results.json"]


def test_permissions_are_those_of_an_ordinary_new_file(tmp_path: Path) -> None:
    """The mode is not 0600, as of a temporary file: a server that runs as another user must be able to read a model."""
    with whole_file(tmp_path / "a") as temporary:
        temporary.write_text("")
    before = os.umask(0)
    os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~before


def test_the_temporary_file_may_be_replaced_by_its_writer(tmp_path: Path) -> None:
    """Some libraries write to a file of their own and rename it."""
    with whole_file(tmp_path / "a") as temporary:
        (tmp_path / "other").write_text("replaced")
        (tmp_path / "other").rename(temporary)
    assert (tmp_path / "a").read_text() == "replaced"


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), whole_file(tmp_path / "file" / "a"):
        pass


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    assert fresh_folder(tmp_path / "a" / "out") == tmp_path / "a" / "out"
    assert fresh_folder(tmp_path / "a" / "out") == tmp_path / "a" / "out", "it is still empty"
    (tmp_path / "a" / "out" / "kept").touch()
    assert fresh_folder(tmp_path / "a" / "out") == tmp_path / "a" / "out-2"
    (tmp_path / "a" / "out-3").touch()
    assert fresh_folder(tmp_path / "a" / "out") == tmp_path / "a" / "out-4", "what a run beside this one has made is not shared"
    with pytest.raises(SettingsError, match="out-3 is a file: expected a folder"):
        fresh_folder(tmp_path / "a" / "out-3")


CANNOT = ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EFBIG", "EIO"]


@pytest.mark.parametrize("name", CANNOT)
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    """The system's error of a failed `write` does not name the file."""
    number = getattr(errno, name)
    target = tmp_path / "metrics.csv"
    with pytest.raises(OSError) as told, whole_file(target):
        raise OSError(number, os.strerror(number))
    assert (told.value.errno, told.value.filename) == (number, str(target))
    assert is_unwritable(told.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    ["Error while serializing: I/O error: No space left on device (os error 28)", "IoError(Os { code: 28, kind: StorageFull })"],
)
def test_an_error_of_another_library_is_the_systems(tmp_path: Path, text: str) -> None:
    with pytest.raises(OSError, match="No space left on device") as told, whole_file(tmp_path / "checkpoint.safetensors"):
        raise RuntimeError(text)
    assert told.value.filename == str(tmp_path / "checkpoint.safetensors")


def test_an_error_that_names_another_file_or_none_of_the_disks_stays_as_it_is(tmp_path: Path) -> None:
    for error in (
        OSError(errno.EACCES, "Permission denied", "/data/other.jpg"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        TimeoutError("no answer"),
        ValueError("no number"),
    ):
        with pytest.raises(type(error)) as told, whole_file(tmp_path / "a"):
            raise error
        assert told.value is error


def test_a_folder_that_is_read_only_is_told_by_the_files_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path, prefix: str, suffix: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(Path(dir) / f"{prefix}x{suffix}"))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(OSError) as told, whole_file(tmp_path / "results.json"):
        pass
    assert told.value.filename == str(tmp_path / "results.json")
