"""The data sheet: counts, sizes and duplicates of the images, and a warning per problem."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.training.tiny_training import config, put_colours
from tlcli.contract.images import decoding
from tlcli.training.data.array_source import ArraySource
from tlcli.training.data.dataset import Dataset, LeftOut, Part
from tlcli.training.data.folder_source import FolderSource
from tlcli.training.data.image_size import image_size
from tlcli.training.data.load import load_dataset
from tlcli.training.reports.datasheet import DataSheet, describe_dataset, read_data_sheet, write_data_sheet

CLASSES = ("cat", "dog")


class Sizes:
    """Source whose images have the size in their names: `30x20/1`."""

    def load(self, name: str) -> Image.Image:
        width, height = name.split("/")[0].split("x")
        return Image.new("RGB", (int(width), int(height)))


def part(labels: Sequence[int], names: Sequence[str], contents: Sequence[object]) -> Part:
    fingerprints = tuple(hashlib.sha256(str(content).encode()).hexdigest() for content in contents)
    return Part(np.array(labels, dtype=np.int64), tuple(names), fingerprints, Sizes())  # type: ignore[arg-type]


def dataset(train: Part, val: Part, test: Part | None = None, classes: tuple[str, ...] = CLASSES) -> Dataset:
    return Dataset("pets", classes, train, val, test, (LeftOut("cat/x.jpg", "truncated"),), "ab" * 32)


def plain(prefix: str, of_first: int, of_second: int) -> Part:
    labels = [0] * of_first + [1] * of_second
    names = [f"30x20/{prefix}{number}" for number in range(len(labels))]
    return part(labels, names, names)


def test_distinct_images_cause_no_warning() -> None:
    sheet = describe_dataset(dataset(plain("a", 12, 18), plain("b", 5, 6), plain("c", 7, 8)))
    assert sheet.images == {"train": {"cat": 12, "dog": 18}, "val": {"cat": 5, "dog": 6}, "test": {"cat": 7, "dog": 8}}
    assert sheet.imbalance == 1.5
    assert (sheet.duplicates, sheet.duplicate_contents, sheet.contradictions, sheet.overlaps) == ((), 0, 0, ())
    assert [(left.name, left.reason) for left in sheet.left_out] == [("cat/x.jpg", "truncated")]
    assert sheet.warnings == ()


def test_duplicates_are_found_in_and_across_parts() -> None:
    train = part([0] * 10 + [1] * 10, [f"1x1/t{n}" for n in range(20)], [*range(18), 3, 17])
    val = part([0] * 5 + [1] * 5, [f"1x1/v{n}" for n in range(10)], [4, 4, 100, 101, 102, 103, 104, 105, 106, 12])
    test = part([0] * 5 + [1] * 5, [f"1x1/s{n}" for n in range(10)], [100, *range(200, 209)])
    sheet = describe_dataset(dataset(train, val, test))
    assert sheet.duplicate_contents == 5
    assert sheet.contradictions == 1
    found = [{(copy.part, copy.name, copy.label) for copy in group} for group in sheet.duplicates]
    assert found[0] == {("train", "1x1/t3", "cat"), ("train", "1x1/t18", "dog")}, "contradictions come first"
    assert {("train", "1x1/t4", "cat"), ("val", "1x1/v0", "cat"), ("val", "1x1/v1", "cat")} in found[1:4]
    assert {("val", "1x1/v2", "cat"), ("test", "1x1/s0", "cat")} in found[1:4]
    assert found[4] == {("train", "1x1/t17", "dog"), ("train", "1x1/t19", "dog")}, "copies within a part come last"
    assert [(one.of, one.also_in, one.images) for one in sheet.overlaps] == [("val", "train", 3), ("test", "val", 1)]
    assert sheet.warnings == (
        "3 of the 10 images of the validation part are in the training part too: the metrics of the validation part are too optimistic",
        "1 of the 10 images of the test part is in the validation part too, which selected the epoch",
        "1 image has two labels, such as 1x1/t3 (cat) and 1x1/t18 (dog): one of them must be wrong",
    )


def test_all_duplicates_are_counted_and_a_hundred_listed() -> None:
    train = part([0, 1] * 150, [f"1x1/{n}" for n in range(300)], [n // 2 for n in range(300)])
    sheet = describe_dataset(dataset(train, plain("v", 5, 5)))
    assert (sheet.duplicate_contents, sheet.contradictions, len(sheet.duplicates)) == (150, 150, 100)
    assert sheet.warnings[0].startswith("150 images have two labels or more, such as 1x1/0 (cat) and 1x1/1 (dog)")


def test_small_and_imbalanced_classes_cause_warnings() -> None:
    sheet = describe_dataset(dataset(plain("a", 9, 90), plain("b", 4, 5)))
    assert sheet.imbalance == 10
    assert sheet.warnings == (
        "fewer than 10 training images of cat (9): too few to learn from",
        "fewer than 5 validation images of cat (4): too few to judge by",
        "the training part has 90 images of dog and 9 of cat: judge by the macro recall, which weighs every class equally",
    )


def test_sizes_match_the_images() -> None:
    names = ["30x20/a", "50x10/b", "40x40/c", "gone"]
    sheet = describe_dataset(dataset(part([0, 1, 0, 1], names, names), part([0, 1], ["7x900/a", "8x8/b"], ["x", "y"])))
    assert sheet.sizes is not None
    assert sheet.sizes.measured == 5
    assert sheet.sizes.width.model_dump() == {"smallest": 7, "median": 30, "largest": 50}
    assert sheet.sizes.height.model_dump() == {"smallest": 8, "median": 20, "largest": 900}


def test_a_sample_of_very_many_images_is_measured() -> None:
    names = [f"{10 + n % 7}x5/{n}" for n in range(12_000)]
    sheet = describe_dataset(dataset(part([0, 1] * 6000, names, names), plain("v", 5, 5)))
    assert sheet.sizes is not None
    assert 3000 < sheet.sizes.measured <= 5000
    assert (sheet.sizes.width.smallest, sheet.sizes.width.largest) == (10, 30)


def test_no_image_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_dataset(config(put_colours(tmp_path, train=10, val=5, test=5)))

    def refuse(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", refuse)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    sheet = describe_dataset(loaded)
    assert sheet.sizes is not None
    assert (sheet.sizes.measured, sheet.sizes.width.median, sheet.sizes.height.median) == (60, 46, 40)
    assert sheet.warnings == ()


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_size_is_that_of_the_upright_image(orientation: int, kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / f"a.{kind}", exif=exif)
    encoded = (tmp_path / f"a.{kind}").read_bytes()
    expected = decoding.decode(encoded).size
    assert expected == ((20, 30) if orientation > 4 else (30, 20))
    assert image_size(FolderSource(tmp_path), f"a.{kind}") == expected

    class Encoded:
        def __len__(self) -> int:
            return 1

        def image(self, index: int) -> bytes:
            return encoded

    assert image_size(ArraySource({"train": Encoded()}), "hfds/x/train/0") == expected


def test_a_missing_image_has_no_size(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    assert image_size(FolderSource(tmp_path), "a.jpg") is None
    assert image_size(FolderSource(tmp_path), "text.png") is None


def test_a_data_sheet_is_read_back_unchanged(tmp_path: Path) -> None:
    sheet = describe_dataset(dataset(plain("a", 9, 90), plain("b", 4, 5), classes=("猫", 'a"<b>|')))
    write_data_sheet(tmp_path / "data_sheet.json", sheet)
    assert read_data_sheet(tmp_path) == sheet
    assert "猫 (9)" in sheet.warnings[0]


def test_a_data_sheet_that_is_missing_or_of_another_version_is_none(tmp_path: Path) -> None:
    assert read_data_sheet(tmp_path) is None
    (tmp_path / "data_sheet.json").write_text('{"dataset": "x"}')
    assert read_data_sheet(tmp_path) is None


def test_a_data_sheet_is_frozen() -> None:
    sheet = describe_dataset(dataset(plain("a", 10, 10), plain("b", 5, 5)))
    assert isinstance(sheet, DataSheet)
    with pytest.raises(ValueError, match="frozen"):
        sheet.imbalance = 2.0  # type: ignore[misc]


def test_an_image_in_memory_has_a_size() -> None:
    class Kept:
        def __len__(self) -> int:
            return 1

        def image(self, index: int) -> Image.Image:
            return Image.new("L", (28, 31))

    assert image_size(ArraySource({"train": Kept()}), "mnist/train/0") == (28, 31)
