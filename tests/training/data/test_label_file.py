"""Data sets from label files: splits, groups, weights, and runs that notice a change."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.training.label_files import list_text, put_images
from tests.helpers.training.small_images import put_image
from tests.helpers.training.tiny_training import COLOURS, config, put_image_of
from tlcli.contract.errors import DatasetError, SettingsError
from tlcli.training import Callback, finetune, load_run, resume
from tlcli.training.data.load import Dataset, load_dataset, save_split
from tlcli.training.metrics.scores import EpochRow
from tlcli.training.reports.datasheet import describe_dataset
from tlcli.training.settings.config import FinetuneConfig

pytestmark = pytest.mark.usefixtures("blank_figures")


def load(path: Path, **options: object) -> Dataset:
    return load_dataset(FinetuneConfig.model_validate({"dataset": str(path), **options}))


def write(folder: Path, rows: list[str], header: str = "path,label", name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def patients(folder: Path, count: int, images: int = 4) -> list[str]:
    """Write images of patients, alternately ill and well, and return the rows `path,label,patient`."""
    rows = []
    for patient in range(count):
        label = ("ill", "well")[patient % 2]
        for number in range(images):
            put_image(folder / "scans" / f"{patient:03d}-{number}.png")
            rows.append(f"scans/{patient:03d}-{number}.png,{label},p{patient}")
    return rows


def test_without_splits_the_file_gives_the_same_parts_as_a_folder(tmp_path: Path) -> None:
    names = [f"{label}/{number:02d}.png" for label in ("ant", "bee") for number in range(10)]
    put_images(tmp_path, *names)
    path = write(tmp_path, [f"{name},{name[:3]}" for name in reversed(names)])
    by_file, by_folder = load(path), load(tmp_path)
    assert by_file.val.names == by_folder.val.names
    assert by_file.fingerprint == by_folder.fingerprint
    assert load(path, limit=2, classes=("bee", "ant")).train.labels.tolist() == [0, 0, 1, 1]


def test_the_order_of_the_rows_has_no_effect(tmp_path: Path) -> None:
    rows = patients(tmp_path, 8)
    first = load(write(tmp_path, rows, "path,label,patient"), group_column="patient")
    again = load(write(tmp_path, rows[::-1], "path,label,patient"), group_column="patient")
    assert first.fingerprint == again.fingerprint
    assert first.val.names == again.val.names


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (("train", "Validation", "TEST"), ("train", "val", "test")),
        (("training", "valid", "testing"), ("train", "val", "test")),
        (("", "val", "test"), ("train", "val", "test")),
        (("", "dev", ""), ("train", "val", "train")),
        (("train", "eval", "test"), ("train", "val", "test")),
        (("train", "val", "eval"), ("train", "val", "test")),
        (("", "", "test"), ("train", "train", "test")),
        (("train", "test", ""), ("train", "test", "train")),
    ],
)
def test_splits_are_read_in_any_spelling_and_rows_without_one_are_for_training(
    tmp_path: Path, splits: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    names = put_names(tmp_path, 3)
    rows = [f"{name},x,{split}" for name, split in zip(names, splits, strict=True)]
    listing = list_text(tmp_path, "\n".join(["path,label,split", *rows]))
    parts = {name: part for part, images in listing.parts.items() for name in images["x"]}
    assert tuple(parts[name] for name in names) == expected
    assert any("no split and belong" in note for note in listing.notes) == ("" in splits)


def put_names(folder: Path, count: int) -> list[str]:
    names = [f"{number}.png" for number in range(count)]
    put_images(folder, *names)
    return names


def test_without_validation_rows_a_share_of_the_training_rows_is_held_out(tmp_path: Path) -> None:
    names = put_names(tmp_path, 24)
    path = write(tmp_path, [f"{name},{'ab'[n % 2]},{'test' if n < 4 else ''}" for n, name in enumerate(names)], "path,label,split")
    dataset = load(path)
    assert [len(part) for part in dataset.parts.values()] == [16, 4, 4]
    assert dataset.test is not None
    assert set(dataset.test.names) == set(names[:4])
    assert dataset.notes == ("20 rows have no split and belong to the training part: lines 6, 7, 8, 9, 10 and 15 more",)
    assert dataset.layout == "train from rows without a split, test from split test"


def test_a_test_split_without_labels_is_left_out(tmp_path: Path) -> None:
    """As in competitions, which withhold them."""
    put_images(tmp_path)
    rows = "path,label,split\ncat/1.png,cat,train\ndog/1.png,dog,train\ncat/2.png,,test\ndog/2.png,,test\n"
    listing = list_text(tmp_path, rows)
    assert listing.test is None
    assert [(entry.name, entry.reason) for entry in listing.skipped] == [
        ("cat/2.png", "no label in the test split"),
        ("dog/2.png", "no label in the test split"),
    ]
    with pytest.raises(DatasetError, match=r"1 row has no label \(an empty cell or NaN\): line 5"):
        list_text(tmp_path, rows.replace("cat/2.png,,", "cat/2.png,cat,"))


def test_a_file_with_a_test_split_only_is_refused_for_training(tmp_path: Path) -> None:
    path = write(put_images(tmp_path), ["cat/1.png,cat,test", "dog/1.png,dog,test"], "path,label,split")
    with pytest.raises(DatasetError, match=r"labels.csv: no row of the training part, only split test: expected rows with the split train"):
        load(path)


def test_classes_must_be_in_every_split(tmp_path: Path) -> None:
    path = write(put_images(tmp_path), ["cat/1.png,cat,train", "dog/1.png,dog,train", "cat/2.png,cat,val"], "path,label,split")
    with pytest.raises(DatasetError, match="the val part lacks the class dog: every part needs the classes of train"):
        load(path)


def test_repeated_rows_and_similar_classes_are_noted(tmp_path: Path) -> None:
    put_images(tmp_path)
    listing = list_text(tmp_path, "path,label\ncat/1.png,cat\ncat/1.png,cat\n./cat/1.png,cat\ncat/2.png,Cat\n")
    assert listing.train == {"Cat": ["cat/2.png"], "cat": ["cat/1.png"]}
    assert listing.notes == (
        "2 rows repeat earlier ones and are ignored: lines 3, 4",
        "the classes 'Cat' and 'cat' differ only in case or spaces: write them in the same way if they are one",
    )


# ---- groups


def groups_of(dataset: Dataset, part: str) -> set[str]:
    return {Path(name).name.split("-")[0] for name in dataset.parts[part].names}


def test_all_images_of_a_group_are_in_one_part_and_the_data_sheet_records_it(tmp_path: Path) -> None:
    path = write(tmp_path, patients(tmp_path, 20), "path,label,patient")
    dataset = load(path, group_column="patient")
    assert not groups_of(dataset, "train") & groups_of(dataset, "val")
    assert Counter(dataset.val.labels.tolist()) == {0: 8, 1: 8}, "a fifth of each class"
    sheet = describe_dataset(dataset)
    assert sheet.groups is not None
    assert (sheet.groups.column, sheet.groups.parts) == ("patient", {"train": 16, "val": 4})
    leaking = load(path)
    assert groups_of(leaking, "train") & groups_of(leaking, "val"), "without the column, images of a patient are in both"


def test_the_split_of_groups_depends_on_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path, patients(tmp_path, 20), "path,label,group")
    first, again, other = (load(path, seed=seed) for seed in (1, 1, 2))
    assert first.val.names == again.val.names
    assert first.val.names != other.val.names


def test_rows_without_a_split_follow_their_group(tmp_path: Path) -> None:
    rows = patients(tmp_path, 12)
    rows = [f"{row},{'test' if row.endswith((',p0', ',p1')) and '-0' in row else ''}" for row in rows]
    dataset = load(write(tmp_path, rows, "path,label,group,split"))
    assert groups_of(dataset, "test") == {"000", "001"}
    assert not groups_of(dataset, "test") & (groups_of(dataset, "train") | groups_of(dataset, "val"))
    assert not groups_of(dataset, "train") & groups_of(dataset, "val")
    assert "of them to that of their group" in dataset.notes[0]


def test_an_image_without_a_group_is_a_group_of_its_own(tmp_path: Path) -> None:
    rows = [row.rpartition(",")[0] + "," + ("" if "-3" in row else "all" + row.split(",")[1]) for row in patients(tmp_path, 12)]
    dataset = load(write(tmp_path, rows, "path,label,group"))
    assert len(dataset.train) + len(dataset.val) == 48
    assert dataset.groups["train"] + dataset.groups["val"] == 2 + 12


def test_a_class_of_one_group_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, patients(tmp_path, 2), "path,label,group")
    with pytest.raises(DatasetError, match=r"labels.csv: the images of the class ill are of one group \(column group\), but training and"):
        load(path)


def test_settings_of_label_files_are_refused_for_folders(tmp_path: Path) -> None:
    put_images(tmp_path)
    with pytest.raises(DatasetError, match=r"--group-column applies to label files, but .* is none: leave --group-column out"):
        load(tmp_path, group_column="patient")
    with pytest.raises(DatasetError, match="--columns applies to label files, but shapes is none: leave --columns out"):
        load(Path("shapes"), columns={"path": "file"})


# ---- weights


def test_weights_of_training_images_are_in_the_order_of_the_part(tmp_path: Path) -> None:
    names = put_names(tmp_path, 12)
    path = write(tmp_path, [f"{name},{'ab'[n % 2]},{n + 1}" for n, name in enumerate(names)], "path,label,weight")
    dataset = load(path)
    assert dataset.train.weights is not None
    assert dataset.train.weights.tolist() == [int(Path(name).stem) + 1 for name in dataset.train.names]
    assert dataset.train.take([3]).weights == dataset.train.weights[[3]]
    assert dataset.val.weights is None, "validation counts each image once"
    sheet = describe_dataset(dataset)
    assert sheet.weights is not None
    assert (sheet.weights.smallest, sheet.weights.largest) == (dataset.train.weights.min(), dataset.train.weights.max())


def test_equal_weights_change_nothing(tmp_path: Path) -> None:
    names = put_names(tmp_path, 12)
    plain = load(write(tmp_path, [f"{name},{'ab'[n % 2]}" for n, name in enumerate(names)]))
    equal = load(write(tmp_path, [f"{name},{'ab'[n % 2]},3" for n, name in enumerate(names)], "path,label,weight"))
    empty = load(write(tmp_path, [f"{name},{'ab'[n % 2]}," for n, name in enumerate(names)], "path,label,weight"))
    assert equal.train.weights is None
    assert plain.fingerprint == equal.fingerprint == empty.fingerprint


# ---- runs


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images of three colours and a label file."""
    folder = tmp_path_factory.mktemp("colours")
    rows = []
    for colour in COLOURS:
        for number in range(10):
            put_image_of(folder / "images" / f"{colour}-{number}.png", colour, number)
            rows.append(f"images/{colour}-{number}.png,{colour},{number // 2},{1 + number % 3}")
    write(folder, rows, "file,class,burst,importance")
    return folder


COLUMNS = {"path": "file", "label": "class", "weight": "importance"}


@pytest.mark.parametrize("mode", ["feature-extraction", "full"])
def test_a_run_with_weights_and_groups_is_read_back(colours: Path, tmp_path: Path, mode: str) -> None:
    """The folder of the run is named after the file, and the settings keep the columns."""
    settings = config(colours / "labels.csv", tmp_path / "run", columns=COLUMNS, group_column="burst", mode=mode, epochs=2)
    result = finetune(settings)
    run = load_run(result.path)
    assert (run.config.columns, run.config.group_column) == (COLUMNS, "burst")
    assert run.dataset().fingerprint == run.dataset_fingerprint
    unweighted = finetune(
        config(
            colours / "labels.csv",
            tmp_path / "plain",
            columns={"path": "file", "label": "class"},
            group_column="burst",
            mode=mode,
            epochs=2,
        )
    )
    same = load_run(unweighted.path).network.state_dict()
    assert any(not np.array_equal(tensor, same[name]) for name, tensor in run.network.state_dict().items()), "the weights have an effect"


def test_head_search_uses_the_weights(colours: Path, tmp_path: Path) -> None:
    losses = []
    for columns in (COLUMNS, {"path": "file", "label": "class"}):
        settings = config(colours / "labels.csv", tmp_path / f"{len(losses)}", columns=columns, head_search=True, epochs=1)
        finetune(settings)
        losses.append((tmp_path / f"{len(losses)}" / "head_search.csv").read_text())
    assert losses[0] != losses[1]


def test_weights_are_refused_with_mixed_images(colours: Path, tmp_path: Path) -> None:
    settings = config(colours / "labels.csv", tmp_path / "run", columns=COLUMNS, mode="full", mixup=0.2)
    with pytest.raises(SettingsError, match=r"--mixup cannot be combined with the weights of images in .*labels.csv: leave --mixup out"):
        finetune(settings)


class CutError(Exception):
    """The run is interrupted."""


class Cut(Callback):
    """Callback that interrupts a run after its first epoch."""

    def on_epoch_end(self, row: EpochRow, is_best: bool) -> None:
        raise CutError


@pytest.fixture
def interrupted(colours: Path, tmp_path: Path) -> Iterator[tuple[Path, Path, str]]:
    """Return an interrupted run, its label file, and the file's text, to which it is set back afterwards."""
    path = colours / "labels.csv"
    text = path.read_text()
    with pytest.raises(CutError):
        finetune(config(path, tmp_path / "run", columns=COLUMNS, mode="full", epochs=2), callbacks=[Cut()])
    yield tmp_path / "run", path, text
    path.write_text(text)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("red-1.png,red", "red-1.png,blue"),
        ("images/red-1.png,red,0,2\n", ""),
        ("red,0,2\n", "red,0,3\n"),
        ("file,class,burst,importance", "file,class,group,importance"),
    ],
    ids=["label", "row", "weight", "groups"],
)
def test_a_resumed_run_notices_a_change_of_the_file(interrupted: tuple[Path, Path, str], before: str, after: str) -> None:
    run, path, text = interrupted
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(
        SettingsError, match=r"labels.csv or its images \(labels, splits, weights or contents\) changed since this run started"
    ):
        resume(run)


def test_a_resumed_run_reads_the_file_again_in_any_order_and_place(interrupted: tuple[Path, Path, str], tmp_path: Path) -> None:
    run, path, text = interrupted
    header, *rows = text.splitlines()
    (tmp_path / "images").symlink_to(path.parent / "images")
    moved = tmp_path / "moved.csv"
    moved.write_text("\n".join([header, *reversed(rows)]) + "\n")
    result = resume(run, dataset=str(moved))
    assert result.trained
    moved.unlink()
    with pytest.raises(DatasetError, match=r"its data set .*moved.csv no longer exists: give its new location with --dataset"):
        load_run(run).dataset()


def test_the_split_of_a_file_is_saved_with_its_names(colours: Path, tmp_path: Path) -> None:
    dataset = load(colours / "labels.csv", columns=COLUMNS)
    save_split(dataset, tmp_path / "split.json")
    parts = json.loads((tmp_path / "split.json").read_text())["parts"]
    assert sorted(name for images in parts.values() for names in images.values() for name in names) == sorted(
        f"images/{colour}-{number}.png" for colour in COLOURS for number in range(10)
    )
