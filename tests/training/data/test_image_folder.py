"""Recognized layouts of image folders, and error messages for others. The files are empty, since none is opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tlcli.contract.errors import DatasetError
from tlcli.training.data.image_folder import list_folder
from tlcli.training.data.listing import Listing, choose_classes
from tlcli.training.data.split_names import part_name


def put(folder: Path, *places: str) -> Path:
    for place in places:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).touch()
    return folder


def test_folders_are_classes(tmp_path: Path) -> None:
    listing = list_folder(put(tmp_path, "dog/1.jpg", "cat/2.PNG", "cat/1.jpeg"))
    assert listing.classes == ("cat", "dog")
    assert listing.train == {"cat": ["cat/1.jpeg", "cat/2.PNG"], "dog": ["dog/1.jpg"]}
    assert listing.val is None
    assert listing.test is None


@pytest.mark.parametrize(
    ("train", "val", "test"), [("train", "val", "test"), ("Training", "VALID", "Testing"), ("TRAIN", "Validation", "TEST")]
)
def test_part_folders_are_recognized_in_any_case(tmp_path: Path, train: str, val: str, test: str) -> None:
    put(tmp_path, *(f"{part}/{name}/1.jpg" for part in (train, val, test) for name in ("a", "b")), "readme.txt", "logo.png")
    listing = list_folder(tmp_path)
    assert listing.classes == ("a", "b")
    assert listing.parts == {
        kind: {"a": [f"{part}/a/1.jpg"], "b": [f"{part}/b/1.jpg"]} for kind, part in (("train", train), ("val", val), ("test", test))
    }


def test_train_and_test_folders_without_val(tmp_path: Path) -> None:
    listing = list_folder(put(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/b/1.jpg"))
    assert listing.val is None
    assert listing.test == {"a": ["test/a/1.jpg"], "b": ["test/b/1.jpg"]}


def test_a_class_named_train_is_a_class(tmp_path: Path) -> None:
    listing = list_folder(put(tmp_path, "bus/1.jpg", "train/0001.jpg", "train/photo.jpg"))
    assert listing.classes == ("bus", "train")


def test_images_in_subfolders_count_and_hidden_ones_do_not(tmp_path: Path) -> None:
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
        (["1.jpg", "2.jpg"], "2 images, but no class folders: expected <class>/<image>, or train/<class>/<image>"),
        (["notes.txt"], "neither images nor class folders (left out: notes.txt: empty): expected"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/1.png", "val/x.png"], "in val: 2 images, but no class folders"),
        (["one/train/a/1.jpg", "one/test/a/1.jpg", "two/train/a/1.jpg", "two/val/a/1.jpg"], "holds several data sets, one, two, each with"),
        (["train/a/1.jpg", "Training/a/1.jpg"], "both Training and train could be the train part: keep one"),
        (["train/a/1.jpg", "val/a/1.jpg", "valid/a/1.jpg"], "both val and valid could be the val part: keep one"),
    ],
)
def test_other_layouts_are_rejected(tmp_path: Path, places: list[str], message: str) -> None:
    with pytest.raises(DatasetError) as refusal:
        list_folder(put(tmp_path, *places))
    assert str(refusal.value).startswith(f"{tmp_path}: ")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def reasons(listing: Listing) -> dict[str, str]:
    return {entry.name: entry.reason for entry in listing.skipped}


def of_both(*folders: str) -> list[str]:
    """Return paths of an image of each of two classes in each folder."""
    return [f"{folder}/{name}/1.jpg" for folder in folders for name in ("cat", "dog")]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("training_set", None, "test_set"),
        ("seg_train", None, "seg_test"),
        ("train_images", "val_images", None),
        ("training_set/training_set", None, "test_set/test_set"),
        ("seg_train/seg_train", None, "seg_test/seg_test"),
        ("train", "dev", "test"),
        ("train", "eval", None),
        ("train", "val", "eval"),
        ("training", "validation", "evaluation"),
        ("TrainSet", "ValSet", "TestImages"),
        ("train2017", "val2017", None),
        ("Train Data", "Valid Data", "Test Data"),
        ("asl_alphabet_train", None, "asl_alphabet_test"),
        ("asl_alphabet_train/asl_alphabet_train", "asl_alphabet_valid", None),
        ("train", "valid", "test"),
    ],
)
@pytest.mark.parametrize("wrapper", ["", "archive/", "one/two/"])
def test_common_names_of_parts_and_wrapping_folders_are_recognized(
    tmp_path: Path, train: str, val: str | None, test: str | None, wrapper: str
) -> None:
    by_part = {"train": train, "val": val, "test": test}
    listing = list_folder(put(tmp_path, *of_both(*(wrapper + folder for folder in by_part.values() if folder)), "readme.md"))
    assert listing.classes == ("cat", "dog")
    assert listing.parts == {
        part: {name: [f"{folder}/{name}/1.jpg"] for name in ("cat", "dog")} for part, folder in by_part.items() if folder is not None
    }
    assert listing.folders == {part: folder for part, folder in by_part.items() if folder is not None}
    assert (tmp_path / wrapper).samefile(listing.source.root)  # type: ignore[attr-defined]


def test_kaggles_intel_images(tmp_path: Path) -> None:
    listing = list_folder(put(tmp_path, *of_both("seg_train/seg_train", "seg_test/seg_test"), "seg_pred/seg_pred/24.jpg"))
    assert list(listing.parts) == ["train", "test"]
    assert reasons(listing) == {"seg_pred": "not a training, validation or test folder"}


def test_kaggles_chest_x_rays(tmp_path: Path) -> None:
    put(tmp_path, *of_both(*(f"chest_xray/{below}{part}" for below in ("", "chest_xray/") for part in ("train", "val", "test"))))
    put(tmp_path, "chest_xray/__MACOSX/chest_xray/train/cat/._1.jpg", "chest_xray/chest_xray/.DS_Store")
    listing = list_folder(tmp_path)
    assert {part: of_part["cat"] for part, of_part in listing.parts.items()} == {
        part: [f"{part}/cat/1.jpg"] for part in ("train", "val", "test")
    }
    assert reasons(listing) == {
        "chest_xray/__MACOSX": "a folder of the system, not of images",
        "chest_xray/chest_xray": "not a training, validation or test folder",
    }
    assert listing.layout == "in chest_xray: train from train, val from val, test from test"


def test_kaggles_flowers_with_their_copy(tmp_path: Path) -> None:
    listing = list_folder(put(tmp_path, *of_both("flowers", "flowers/flowers"), "flowers/LICENSE.txt"))
    assert listing.train == {"cat": ["cat/1.jpg"], "dog": ["dog/1.jpg"]}
    assert reasons(listing)["flowers/flowers"] == "holds folders with the same names as those next to it: a copy, or masks"


def test_kaggles_dogs_and_cats_in_doubled_folders(tmp_path: Path) -> None:
    listing = list_folder(put(tmp_path, "train/train/cat.0.jpg", "train/train/dog.0.jpg", "test1/test1/1.jpg", "test1/test1/2.jpg"))
    assert listing.train == {"cat": ["train/train/cat.0.jpg"], "dog": ["train/train/dog.0.jpg"]}
    assert listing.test is None
    assert "unlabelled" in reasons(listing)["test1"]


def test_imagenette_and_hymenoptera(tmp_path: Path) -> None:
    listing = list_folder(put(tmp_path, *of_both("imagenette2-160/train", "imagenette2-160/val"), "imagenette2-160/noisy_imagenette.csv"))
    assert list(listing.parts) == ["train", "val"]
    assert list(reasons(listing)) == ["imagenette2-160/noisy_imagenette.csv"]


def test_a_class_named_train_hides_no_class_next_to_it(tmp_path: Path) -> None:
    listing = list_folder(put(tmp_path, "train/steam/1.jpg", "train/diesel/2.jpg", "car/1.jpg", "bus/1.jpg"))
    assert listing.train == {"bus": ["bus/1.jpg"], "car": ["car/1.jpg"], "train": ["train/diesel/2.jpg", "train/steam/1.jpg"]}
    note = "train is treated as a class, since there are other classes next to it: use train as the data set if it holds the classes"
    assert listing.notes == (note,)


def test_folders_next_to_train_are_listed_and_are_not_classes(tmp_path: Path) -> None:
    listing = list_folder(put(tmp_path, *of_both("train", "extra"), "unlabelled/1.jpg", "docs/readme.txt"))
    assert listing.classes == ("cat", "dog")
    assert set(reasons(listing)) == {"extra", "unlabelled", "docs"}


@pytest.mark.parametrize(
    "places",
    [
        ["test/1.jpg", "test/photo.png"],
        ["test/unknown/1.jpg"],
        ["test/test/1.jpg"],
        ["test/A_test.jpg"],
        ["test/x.txt"],
    ],
)
def test_an_unlabelled_test_folder_is_skipped_and_listed(tmp_path: Path, places: list[str]) -> None:
    listing = list_folder(put(tmp_path, *of_both("train"), *places))
    assert list(listing.parts) == ["train"]
    assert "test" in reasons(listing)


@pytest.mark.parametrize("name", ["@eaDir", "$RECYCLE.BIN", "lost+found", "__MACOSX", ".ipynb_checkpoints", ".Trash-1000"])
@pytest.mark.parametrize("below", ["", "train/"])
def test_system_folders_are_skipped_and_listed(tmp_path: Path, name: str, below: str) -> None:
    listing = list_folder(put(tmp_path, *of_both(below.rstrip("/") or "."), f"{below}{name}/1.jpg", f"{below}cat/{name}/2.jpg"))
    assert listing.train == {"cat": [f"{below}cat/1.jpg"], "dog": [f"{below}dog/1.jpg"]}
    assert set(reasons(listing)) == {f"{below}{name}", f"{below}cat/{name}"}


def test_folders_without_images_are_not_classes_unless_their_images_are_unreadable(tmp_path: Path) -> None:
    put(tmp_path, *of_both("."), "annotations/1.xml", "heic/1.svg", "empty/.gitkeep", "cat/notes.txt")
    listing = list_folder(tmp_path)
    assert listing.classes == ("cat", "dog", "empty", "heic")
    assert reasons(listing) == {
        "annotations": "holds no images (but 1.xml)",
        "cat/notes.txt": "empty",
        "heic/1.svg": "an image of a format that is not read (.svg): convert it to PNG or JPEG",
    }
    with pytest.raises(DatasetError, match=r"no image of the class heic in the train part \(left out: heic/1.svg: an image of a format"):
        choose_classes(listing, ("cat", "heic"), None)


def test_masks_next_to_the_classes_are_not_a_class(tmp_path: Path) -> None:
    assert list_folder(put(tmp_path, *of_both(".", "masks"))).classes == ("cat", "dog")


def test_a_test_folder_alone_can_be_evaluated_but_not_trained_on(tmp_path: Path) -> None:
    listing = list_folder(put(tmp_path, *of_both("test")))
    assert listing.parts == {"test": {"cat": ["test/cat/1.jpg"], "dog": ["test/dog/1.jpg"]}}
    with pytest.raises(DatasetError, match=f"^{tmp_path}: no train folder, only test: expected"):
        choose_classes(listing, None, None)


def test_links_to_parent_and_sibling_folders_are_skipped(tmp_path: Path) -> None:
    put(tmp_path, *of_both("."))
    (tmp_path / "cat" / "up").symlink_to("..")
    (tmp_path / "dog" / "beside").symlink_to("../cat")
    listing = list_folder(tmp_path)
    assert listing.train == {"cat": ["cat/1.jpg"], "dog": ["dog/1.jpg"]}
    assert set(reasons(listing)) == {"cat/up", "dog/beside"}


def test_class_names_are_compared_in_nfc(tmp_path: Path) -> None:
    nfc, nfd = "caf\u00e9", "cafe\u0301"
    listing = list_folder(put(tmp_path, f"train/{nfd}/1.jpg", "train/b/1.jpg", f"val/{nfc}/1.jpg", "val/b/1.jpg"))
    assert listing.classes == ("b", nfc)
    assert listing.train[nfc] == [f"train/{nfd}/1.jpg"]
    assert choose_classes(listing, (nfd, "b"), None) == (nfc, "b")


def test_one_class_in_both_forms_is_one_class(tmp_path: Path) -> None:
    listing = list_folder(put(tmp_path, "caf\u00e9/1.jpg", "cafe\u0301/2.jpg", "b/1.jpg"))
    assert listing.train["caf\u00e9"] == ["cafe\u0301/2.jpg", "caf\u00e9/1.jpg"]


def test_class_names_that_are_not_utf_8_become_text(tmp_path: Path) -> None:
    listing = list_folder(put(tmp_path, os.fsdecode(b"caf\xe9") + "/1.jpg", "two\nlines/1.jpg", 'it\'s "b"/1.jpg'))
    assert listing.classes == (r"caf\xe9", 'it\'s "b"', r"two\nlines")
    put(tmp_path, r"caf\xe9/1.jpg")
    with pytest.raises(DatasetError, match="two folders would both be the class"):
        list_folder(tmp_path)


def test_a_folder_that_cannot_be_listed_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, *of_both("."))
    listed = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DatasetError, match=f"^{tmp_path}/dog: cannot be listed: Permission denied: make it readable, or remove it$"):
        list_folder(tmp_path)


@pytest.mark.parametrize("name", ["bullet", "test tube", "train and test", "contrast", "2017", "", "images"])
def test_other_names_are_not_parts(name: str) -> None:
    assert part_name(name) is None or part_name(name).rest  # type: ignore[union-attr]
