"""A run on a messy folder with odd names, links, pipes and files that are not images: nothing hangs or is left out silently."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.training.tiny_training import config, put_image_of
from tlcli.contract.errors import SettingsError
from tlcli.training import RunResult, finetune, load_run
from tlcli.training.data.dataset import is_near_uniform
from tlcli.training.data.load import load_dataset
from tlcli.training.reports.datasheet import read_data_sheet
from tlcli.training.runs.summary import read_summary

LATIN = os.fsdecode(b"caf\xe9")
"""A class whose name is not UTF-8."""


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("messy") / "data"
    for number in range(6):
        put_image_of(folder / LATIN / f"{number}.png", "red", number)
        put_image_of(folder / "=1+1" / f"{number}.png", "green", number)
        put_image_of(folder / "two\nlines $x$" / f'it\'s "{number}".png', "blue", number)
    odd = os.fsdecode(b"se\xf1al")
    (folder / LATIN / f"{odd}.png").write_bytes((folder / LATIN / "0.png").read_bytes())  # a duplicate
    (folder / LATIN / f"{odd}2.png").write_bytes(b"junk")
    (folder / LATIN / "no suffix").write_bytes((folder / LATIN / "1.png").read_bytes())
    (folder / LATIN / "empty.png").touch()
    (folder / "=1+1" / "notes.txt").write_text("notes")
    Image.new("RGB", (40, 40), (9, 9, 9)).save(folder / "=1+1" / "flat.png")
    (folder / "=1+1" / "up").symlink_to("..")
    os.mkfifo(folder / "=1+1" / "pipe.png")
    (folder / "@eaDir").mkdir()
    put_image_of(folder / "@eaDir" / "1.png", "red", 1)
    return folder


@pytest.fixture(scope="module")
def messages() -> list[str]:
    return []


@pytest.fixture(scope="module")
def run(messy: Path, messages: list[str]) -> RunResult:
    return finetune(config(messy, messy.parent / "run", epochs=1), log=messages.append)


def test_every_file_that_is_left_out_is_reported(run: RunResult, messages: list[str]) -> None:
    assert run.results.images == {"train": 17, "val": 4}
    assert run.results.left_out == 2
    said = "\n".join(messages)
    for line in (
        "left out: folder @eaDir: a folder of the system, not of images",
        "left out: folder =1+1/up: leads to a folder that holds it",
        "left out: =1+1/pipe.png: a FIFO (named pipe)",
        "left out: =1+1/notes.txt: not an image, by its name and its content",
    ):
        assert line in messages, said
    assert "left out: 2 images that could not be read, such as" in said
    assert "warning: 1 image is of one colour everywhere, or nearly, such as =1+1/flat.png: look at them, they teach nothing" in messages
    said.encode()


def test_the_data_sheet_and_the_report_list_what_is_left_out(run: RunResult) -> None:
    sheet = read_data_sheet(run.path)
    assert sheet is not None
    assert [(one.name, one.is_folder) for one in sheet.skipped] == [
        ("@eaDir", True),
        ("=1+1/up", True),
        ("=1+1/notes.txt", False),
        ("=1+1/pipe.png", False),
    ]
    assert sheet.near_uniform == ("=1+1/flat.png",)
    assert {one.name for one in sheet.left_out} == {r"caf\xe9/se\xf1al2.png", r"caf\xe9/empty.png"}
    assert {copy.name for group in sheet.duplicates for copy in group} >= {r"caf\xe9/se\xf1al.png", r"caf\xe9/0.png"}
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "@eaDir" in page
    assert "of 4 files that are not images and folders that are not classes" in page


def test_names_are_valid_text_in_every_file_and_no_spreadsheet_formula(run: RunResult) -> None:
    classes = ("=1+1", r"caf\xe9", r"two\nlines $x$")
    assert tuple(json.loads((run.path / "config.json").read_text(encoding="utf-8"))["classes"]) == classes
    with (run.path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} == {"'=1+1", *classes[1:]}
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())
    assert {one.label for one in read_summary(run.path).predictions} == set(classes)
    split = json.loads((run.path / "split.json").read_text())
    assert sum(len(names) for part in split["parts"].values() for names in part.values()) == 21
    assert load_run(run.path).dataset().classes == classes


def test_near_uniform_images_have_one_colour() -> None:
    rng = np.random.default_rng(0)
    assert is_near_uniform(Image.new("RGB", (50, 40), (200, 3, 90)))
    assert is_near_uniform(Image.fromarray((128 + rng.integers(-2, 3, (50, 40, 3))).astype(np.uint8)))
    assert not is_near_uniform(Image.fromarray((128 + rng.integers(-9, 10, (50, 40, 3))).astype(np.uint8)))
    half = Image.new("RGB", (50, 40))
    half.paste((255, 255, 255), (0, 0, 25, 40))
    assert not is_near_uniform(half)


def test_a_cached_check_records_near_uniform_images(messy: Path) -> None:
    first, again = (load_dataset(config(messy)).near_uniform for _ in range(2))
    assert first == again == ("=1+1/flat.png",)


@pytest.mark.parametrize("name", ["dataset", "output", "data_dir", "weights"])
def test_a_path_that_is_not_utf_8_is_rejected_before_anything_is_written(tmp_path: Path, name: str) -> None:
    odd = tmp_path / LATIN
    odd.mkdir()
    asked = config(tmp_path).model_copy(update={name: odd if name in ("output", "data_dir") else str(odd)})
    with pytest.raises(SettingsError, match=rf"^--{name.replace('_', '-')} .*/caf.xe9: the path is not UTF-8, .* or use a link to it$"):
        finetune(asked)
    assert list(odd.iterdir()) == []
