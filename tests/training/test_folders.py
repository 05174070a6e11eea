"""Which layouts of folders are understood, and what is said of the others. Nothing is opened: the files are empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.errors import DatasetError
from training.folders import list_folder


def put(folder: Path, *places: str) -> Path:
    for place in places:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).touch()
    return folder


def test_classes_only(tmp_path: Path) -> None:
    listing = list_folder(put(tmp_path, "dog/1.jpg", "cat/2.PNG", "cat/1.jpeg"))
    assert listing.classes == ("cat", "dog")
    assert listing.train == {"cat": ["cat/1.jpeg", "cat/2.PNG"], "dog": ["dog/1.jpg"]}
    assert listing.val is None
    assert listing.test is None


@pytest.mark.parametrize(
    ("train", "val", "test"), [("train", "val", "test"), ("Training", "VALID", "Testing"), ("TRAIN", "Validation", "TEST")]
)
def test_part_folders_in_any_case(tmp_path: Path, train: str, val: str, test: str) -> None:
    put(tmp_path, *(f"{part}/{name}/1.jpg" for part in (train, val, test) for name in ("a", "b")), "readme.txt", "logo.png")
    listing = list_folder(tmp_path)
    assert listing.classes == ("a", "b")
    assert listing.parts == {
        kind: {"a": [f"{part}/a/1.jpg"], "b": [f"{part}/b/1.jpg"]} for kind, part in (("train", train), ("val", val), ("test", test))
    }


def test_train_and_test_only(tmp_path: Path) -> None:
    listing = list_folder(put(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/b/1.jpg"))
    assert listing.val is None
    assert listing.test == {"a": ["test/a/1.jpg"], "b": ["test/b/1.jpg"]}


def test_a_class_of_trains_is_a_class(tmp_path: Path) -> None:
    listing = list_folder(put(tmp_path, "bus/1.jpg", "train/0001.jpg", "train/photo.jpg"))
    assert listing.classes == ("bus", "train")


def test_pictures_lie_deeper_and_hidden_ones_do_not_count(tmp_path: Path) -> None:
    put(tmp_path, "a/x/1.jpg", "a/2.jpg", "a/._2.jpg", "a/.ipynb_checkpoints/2.jpg", "b/1.jpg", "a/Thumbs.db", "__MACOSX/a/1.jpg")
    listing = list_folder(put(tmp_path, ".cache/1.jpg"))
    assert listing.train == {"a": ["a/2.jpg", "a/x/1.jpg"], "b": ["b/1.jpg"]}


def test_class_folders_may_be_links(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/1.jpg", "data/a/1.jpg")
    (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere")
    assert list_folder(tmp_path / "data").train["b"] == ["b/1.jpg"]


def test_kaggles_flat_layout(tmp_path: Path) -> None:
    listing = list_folder(put(tmp_path, "cat.0.jpg", "cat.10.jpg", "dog.0.jpg", "st. bernard.v2.3.jpg"))
    assert listing.train == {"cat": ["cat.0.jpg", "cat.10.jpg"], "dog": ["dog.0.jpg"], "st. bernard.v2": ["st. bernard.v2.3.jpg"]}


def test_kaggles_archive_with_its_unlabelled_test(tmp_path: Path) -> None:
    listing = list_folder(put(tmp_path, "train/cat.0.jpg", "train/dog.0.jpg", "test/1.jpg", "test/2.jpg", "sample_submission.csv"))
    assert listing.train == {"cat": ["train/cat.0.jpg"], "dog": ["train/dog.0.jpg"]}
    assert listing.test is None


def test_microsofts_archive(tmp_path: Path) -> None:
    put(tmp_path, "PetImages/Cat/0.jpg", "PetImages/Cat/Thumbs.db", "PetImages/Dog/0.jpg", "readme[1].txt")
    listing = list_folder(tmp_path)
    assert listing.train == {"Cat": ["Cat/0.jpg"], "Dog": ["Dog/0.jpg"]}


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (["1.jpg", "2.jpg"], "2 pictures, but no folders of classes: expected <class>/<picture>, or train/<class>/<picture>"),
        (["notes.txt"], "neither pictures nor folders of classes: expected"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/1.png", "val/x.png"], "in val: 2 pictures, but no folders of classes"),
        (["train/a/1.jpg", "train/b/1.jpg", "test/x.txt"], "in test: neither pictures nor folders of classes"),
        (["val/a/1.jpg", "test/a/1.jpg"], "folder of classes, but no such train folder"),
        (["train/a/1.jpg", "Training/a/1.jpg"], "both Training and train would be its train part: keep one"),
        (["train/a/1.jpg", "val/a/1.jpg", "valid/a/1.jpg"], "both val and valid would be its val part: keep one"),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, places: list[str], message: str) -> None:
    with pytest.raises(DatasetError) as refusal:
        list_folder(put(tmp_path, *places))
    assert str(refusal.value).startswith(f"{tmp_path}: ")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
