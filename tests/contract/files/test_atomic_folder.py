"""A folder appears complete, or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tlcli.contract.files.atomic_folder import whole_folder


def test_there_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "data"
    with whole_folder(target) as temporary:
        (temporary / "inside").mkdir()
        (temporary / "inside" / "file").write_text("content")
        assert not target.exists()
    assert (target / "inside" / "file").read_text() == "content"
    assert [child.name for child in target.parent.iterdir()] == ["data"]
    before = os.umask(0)
    os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o777 & ~before


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with whole_folder(tmp_path / "data") as temporary:
            (temporary / "half").write_text("")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_processes_wins(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "data") as mine:
        (mine / "whose").write_text("mine")
        with whole_folder(tmp_path / "data") as theirs:
            (theirs / "whose").write_text("theirs")
    assert (tmp_path / "data" / "whose").read_text() == "theirs"
    assert [child.name for child in tmp_path.iterdir()] == ["data"]


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with whole_folder(tmp_path / "data") as temporary:
        (temporary / "file").write_text("")
    assert [child.name for child in (tmp_path / "data").iterdir()] == ["file"]


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(OSError), whole_folder(tmp_path / "data"):
        pass
    assert [child.name for child in tmp_path.iterdir()] == ["data"]
