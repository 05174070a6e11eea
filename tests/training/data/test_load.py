"""Loading of data sets: checks, sampling and splits."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tlcli.training.data.folder_source
from tests.helpers.training.small_images import put_classes, put_image
from tlcli.contract.errors import DatasetError, ImageError, SettingsError
from tlcli.training.data.folder_source import FolderSource
from tlcli.training.data.load import Dataset, Part, load_dataset, save_split
from tlcli.training.runtime.progress import Advance
from tlcli.training.settings.config import FinetuneConfig


def load(folder: Path, **options: object) -> Dataset:
    return load_dataset(FinetuneConfig.model_validate({"dataset": str(folder), **options}))


def of_class(dataset: Dataset, part: Part) -> Counter[str]:
    return Counter(dataset.classes[label] for label in part.labels)


def test_the_split_is_stratified_and_loses_no_image(tmp_path: Path) -> None:
    dataset = load(put_classes(tmp_path, ant=50, bee=10, wasp=3))
    assert of_class(dataset, dataset.val) == {"ant": 10, "bee": 2, "wasp": 1}
    assert of_class(dataset, dataset.train) == {"ant": 40, "bee": 8, "wasp": 2}
    assert dataset.test is None
    assert not set(dataset.train.names) & set(dataset.val.names)
    assert len(set(dataset.train.names) | set(dataset.val.names)) == 63
    for part in dataset.parts.values():
        assert part.labels.dtype == np.int64
        assert [dataset.classes.index(name.split("/")[0]) for name in part.names] == part.labels.tolist()


def test_the_split_depends_on_the_seed(tmp_path: Path) -> None:
    put_classes(tmp_path, ant=30, bee=30)
    first, again, other = load(tmp_path, seed=1), load(tmp_path, seed=1), load(tmp_path, seed=2)
    assert first.val.names == again.val.names
    assert first.fingerprint == again.fingerprint
    assert first.val.names != other.val.names
    assert first.fingerprint != other.fingerprint
    assert of_class(first, first.val) == of_class(other, other.val)


def test_adding_a_class_keeps_the_split_of_the_others(tmp_path: Path) -> None:
    before = load(put_classes(tmp_path, ant=20, bee=20))
    after = load(put_classes(tmp_path, aphid=20))
    assert set(before.val.names) < set(after.val.names)


def test_an_existing_validation_part_is_used_unchanged(tmp_path: Path) -> None:
    put_classes(tmp_path / "train", ant=6, bee=6)
    put_classes(tmp_path / "val", ant=2, bee=3)
    put_classes(tmp_path / "test", ant=1, bee=1)
    dataset = load(tmp_path)
    assert [len(part) for part in dataset.parts.values()] == [12, 5, 2]
    assert all(name.startswith("val/") for name in dataset.val.names)


def test_val_fraction_is_the_share_of_validation_images(tmp_path: Path) -> None:
    dataset = load(put_classes(tmp_path, ant=20, bee=20), val_fraction=0.5)
    assert of_class(dataset, dataset.val) == {"ant": 10, "bee": 10}
    almost_all = load(tmp_path, val_fraction=0.999)
    assert of_class(almost_all, almost_all.train) == {"ant": 1, "bee": 1}


def test_a_val_fraction_without_effect_is_rejected_only_in_a_new_run(tmp_path: Path) -> None:
    """Runs of earlier versions, which accepted it, can still be resumed and exported."""
    for part in ("train", "val"):
        put_classes(tmp_path / part, ant=3, bee=3)
    config = FinetuneConfig(dataset=str(tmp_path), val_fraction=0.5)
    assert [len(part) for part in load_dataset(config).parts.values()] == [6, 6]
    with pytest.raises(SettingsError, match=r"^--val-fraction 0.5: .* has a val part, so no images are held out: leave --val-frac"):
        load_dataset(config, is_new=True)


def test_fingerprints_depend_on_contents_only(tmp_path: Path) -> None:
    one, two = put_classes(tmp_path / "one", ant=4, bee=4), tmp_path / "two"
    dataset = load(one)
    for part in dataset.parts.values():
        for name, fingerprint in zip(part.names, part.fingerprints, strict=True):
            assert fingerprint == hashlib.sha256((one / name).read_bytes()).hexdigest()
            copied = two / part_folder(dataset, part) / name.replace("/00", "/renamed")
            copied.parent.mkdir(parents=True, exist_ok=True)
            copied.write_bytes((one / name).read_bytes())
    assert load(two).fingerprint == dataset.fingerprint, "the same images, labels and parts with other names"
    put_image(next((two / "train" / "ant").iterdir()), "another image")
    assert load(two).fingerprint != dataset.fingerprint


def part_folder(dataset: Dataset, part: Part) -> str:
    return next(name for name, candidate in dataset.parts.items() if candidate is part)


def test_images_are_loaded_upright_and_in_rgb(tmp_path: Path) -> None:
    put_classes(tmp_path, ant=3, bee=3)
    Image.fromarray(np.full((5, 9), 0x8000, dtype=np.uint16)).save(tmp_path / "ant" / "grey.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (10, 20)).save(tmp_path / "bee" / "turned.png", exif=exif)
    dataset = load(tmp_path)
    images = {name: part.load(index) for part in dataset.parts.values() for index, name in enumerate(part.names)}
    assert {image.mode for image in images.values()} == {"RGB"}
    assert images["bee/turned.png"].size == (20, 10)
    assert images["ant/grey.png"].getpixel((0, 0)) == (128, 128, 128)


def test_an_image_that_disappears_is_named(tmp_path: Path) -> None:
    dataset = load(put_classes(tmp_path, ant=3, bee=3))
    (tmp_path / dataset.train.names[0]).unlink()
    with pytest.raises(
        ImageError, match=rf"{re.escape(dataset.train.names[0])}: No such file .*it was readable when the images were checked"
    ):
        dataset.train.load(0)


def test_take_selects_images(tmp_path: Path) -> None:
    train = load(put_classes(tmp_path, ant=6, bee=6)).train
    taken = train.take([7, 0])
    assert taken.names == (train.names[7], train.names[0])
    assert taken.fingerprints == (train.fingerprints[7], train.fingerprints[0])
    assert taken.labels.tolist() == [1, 0]
    assert taken.load(0).tobytes() == train.load(7).tobytes()
    assert len(train.take(np.array([], dtype=np.int64))) == 0
    with pytest.raises(IndexError):
        train.take([len(train)])


def spoil(folder: Path) -> dict[str, str]:
    """Write broken images; return the expected reason for each."""
    put_image(folder / "whole.png", size=(64, 64))
    (folder / "truncated.png").write_bytes((folder / "whole.png").read_bytes()[:3000])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("Not an image")
    (folder / "float.tif").touch()
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(folder / "float.tif")
    (folder / "whole.png").unlink()
    return {
        "truncated.png": "the image cannot be decoded",
        "empty.jpg": "the image is empty",
        "text.jpg": "12 bytes are not an image",
        "float.tif": "floating-point values",
    }


def test_broken_images_are_left_out_and_listed(tmp_path: Path) -> None:
    put_classes(tmp_path, ant=10, bee=10)
    expected = spoil(tmp_path / "bee")
    dataset = load(tmp_path)
    assert len(dataset.train) + len(dataset.val) == 20
    reasons = {left.name: left.reason for left in dataset.left_out}
    assert reasons.keys() == {f"bee/{name}" for name in expected}
    for name, reason in expected.items():
        assert reason in reasons[f"bee/{name}"]
    assert load(tmp_path).left_out == dataset.left_out, "the second time, results come from the cache"


def test_limit_is_the_number_of_readable_images_per_class_and_part(tmp_path: Path) -> None:
    put_classes(tmp_path / "train", ant=30, bee=30)
    put_classes(tmp_path / "test", ant=30, bee=4)
    for number in range(0, 30, 2):
        (tmp_path / "train" / "ant" / f"{number:03d}.png").write_bytes(b"")
    dataset = load(tmp_path, limit=5)
    assert of_class(dataset, dataset.train) == {"ant": 5, "bee": 5}
    assert of_class(dataset, dataset.val) == {"ant": 5, "bee": 5}
    assert dataset.test is not None
    assert of_class(dataset, dataset.test) == {"ant": 5, "bee": 4}
    assert dataset.left_out
    assert load(tmp_path, limit=5, seed=3).train.names != dataset.train.names


def test_only_images_that_are_used_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_classes(tmp_path, ant=40, bee=40, wasp=40)
    read: list[str] = []
    check = FolderSource.check

    def noting(source: FolderSource, names: list[str], advance: Advance) -> object:
        read.extend(names)
        return check(source, names, advance)

    monkeypatch.setattr(FolderSource, "check", noting)
    dataset = load(tmp_path, limit=3, classes=["wasp", "ant"])
    assert sorted(read) == sorted(dataset.train.names + dataset.val.names)
    assert len(read) == 12


def test_classes_select_a_subset_in_the_order_of_labels(tmp_path: Path) -> None:
    put_classes(tmp_path, Ant=4, bee=4, wasp=4)
    dataset = load(tmp_path, classes=["wasp", "ANT"])
    assert dataset.classes == ("wasp", "Ant")
    assert of_class(dataset, dataset.train).keys() == {"wasp", "Ant"}
    assert dataset.train.names[0].startswith("wasp/")
    assert dataset.train.labels[0] == 0
    assert load(tmp_path, classes=["Ant", "wasp"]).fingerprint != dataset.fingerprint


def test_classes_that_differ_only_in_case_are_distinguished(tmp_path: Path) -> None:
    put_classes(tmp_path, ant=2, Ant=2)
    assert load(tmp_path, classes=["Ant", "ant"]).classes == ("Ant", "ant")


Arrange = Callable[[Path], object]


@pytest.mark.parametrize(
    ("arrange", "options", "message"),
    [
        (lambda at: put_classes(at, ant=3), {}, "expected at least two classes, found 1 (ant): add another class"),
        (lambda at: put_classes(at, ant=3, bee=3), {"classes": ["ant"]}, "expected at least two classes, found 1 (ant)"),
        (lambda at: put_classes(at, ant=3, bee=0), {}, "no image of the class bee in the train part: add images, remove the class's"),
        (lambda at: put_classes(at, ant=3, bee=3), {"classes": ["ant", "cow"]}, "no class 'cow' (--classes): choose from ant, bee"),
        (lambda at: put_classes(at, ant=3, bee=3), {"classes": ["ant", "Ant"]}, "--classes contains 'ant' twice"),
        (
            lambda at: put_classes(at, ant=3, bee=3),
            {"num_classes": 3},
            "--num-classes 3, but the data set has 2 (ant, bee): leave --num-classes out",
        ),
        (lambda at: put_classes(at, ant=3, bee=1), {}, "only one image of the class bee can be read, but at least two are needed"),
        (
            lambda at: (put_classes(at / "train", ant=2, bee=2), put_classes(at / "val", ant=2)),
            {},
            "the val part lacks the class bee: every part needs the classes of train",
        ),
        (
            lambda at: (put_classes(at / "train", ant=2, bee=2), put_classes(at / "test", ant=2, bee=2, cow=2)),
            {},
            "the test part has a class that train lacks, cow: remove it, or add it to train",
        ),
        (
            lambda at: (put_classes(at / "train", ant=2, bee=2), put_classes(at / "test", ant=2, bee=0)),
            {},
            "no image of the class bee in the test part",
        ),
        (
            lambda at: [(put_classes(at, a=0, b=0) / name / "1.jpg").write_text("text") for name in "ab"],
            {},
            "none of its 2 images can be",
        ),
        (
            lambda at: (put_classes(at, ant=4, bee=0) / "bee" / "1.jpg").write_text("text"),
            {},
            "no image of the class bee in the train part can be read: replace the images",
        ),
    ],
)
def test_unusable_data_sets_are_reported_in_one_line(tmp_path: Path, arrange: Arrange, options: dict[str, object], message: str) -> None:
    arrange(tmp_path)
    with pytest.raises(DatasetError) as refusal:
        load(tmp_path, **options)
    assert str(refusal.value).startswith(f"{tmp_path}: ")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_subset_of_classes_ignores_problems_of_the_others(tmp_path: Path) -> None:
    put_classes(tmp_path / "train", ant=4, bee=4, wasp=0)
    put_classes(tmp_path / "test", ant=1, bee=1, cow=1)
    assert load(tmp_path, classes=["ant", "bee"]).classes == ("ant", "bee")


def test_unknown_specs_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as refusal:
        load(Path("imagenette"))
    assert str(refusal.value) == (
        "unknown data set 'imagenette': expected one of cats-vs-dogs, cifar10, cifar100, mnist, fashion-mnist, shapes,"
        " an existing folder of images, a label file (.csv, .tsv, .jsonl, .json or .parquet), or a timm spec (torch/..., hfds/...,"
        " wds/..., tfds/...)"
    )
    (tmp_path / "images.zip").touch()
    with pytest.raises(DatasetError, match=r"images\.zip is a file: expected a folder of images, or a label file \(.*\); unpack it first"):
        load(tmp_path / "images.zip")


def test_a_second_load_decodes_only_changed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_classes(tmp_path, ant=10, bee=10)
    dataset = load(tmp_path)
    opened: list[Path] = []
    check_file = tlcli.training.data.folder_source.check_file
    monkeypatch.setattr(tlcli.training.data.folder_source, "check_file", lambda path: opened.append(path) or check_file(path))
    assert load(tmp_path).fingerprint == dataset.fingerprint
    assert opened == []

    changed = tmp_path / "ant" / "003.png"
    kept = changed.stat()
    data = bytearray(changed.read_bytes())
    data[-20] ^= 0xFF
    changed.write_bytes(data)
    os.utime(changed, ns=(kept.st_atime_ns, kept.st_mtime_ns))  # as unpacking an archive over the folder does
    again = load(tmp_path)
    assert opened == [changed]
    assert [left.name for left in again.left_out] == ["ant/003.png"]


@pytest.mark.parametrize("memory", ["", "[]", "{", '{"format": 7}', '{"format": "1, Pillow 1.0", "images": {}}', '{"images": 3}'])
def test_an_invalid_cache_of_checks_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: str) -> None:
    monkeypatch.setenv("TLCLI_CACHE", str(tmp_path / "cache"))
    folder = put_classes(tmp_path / "data", ant=3, bee=3)
    dataset = load(folder)
    (kept,) = (tmp_path / "cache" / "scans").iterdir()
    kept.write_text(memory)
    assert load(folder).fingerprint == dataset.fingerprint


def test_a_cache_that_cannot_be_written_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TLCLI_CACHE", str(tmp_path / "file"))
    assert len(load(put_classes(tmp_path / "data", ant=3, bee=3)).train) == 4


def test_progress_counts_every_image(tmp_path: Path) -> None:
    put_classes(tmp_path, ant=100, bee=100)
    reported: list[tuple[str, int, int]] = []

    @contextmanager
    def noting(description: str, total: int):  # type: ignore[no-untyped-def]
        done: list[int] = []
        yield done.append
        reported.append((description, total, sum(done)))

    def progress(description: str, total: int) -> AbstractContextManager[Advance]:
        return noting(description, total)

    config = FinetuneConfig(dataset=str(tmp_path))
    load_dataset(config, progress)
    assert reported == [("Checking images", 200, 200)]
    load_dataset(config, progress)
    assert reported == 2 * [("Checking images", 200, 200)]


def test_the_split_is_saved_as_json(tmp_path: Path) -> None:
    put_classes(tmp_path / "data", ant=5, bee=5)
    (tmp_path / "data" / "bee" / "broken.jpg").touch()
    dataset = load(tmp_path / "data")
    save_split(dataset, tmp_path / "run" / "split.json")
    saved = json.loads((tmp_path / "run" / "split.json").read_text())
    assert saved["dataset"] == str(tmp_path / "data")
    assert saved["fingerprint"] == dataset.fingerprint
    assert saved["classes"] == ["ant", "bee"]
    assert saved["parts"].keys() == {"train", "val"}
    assert len(saved["parts"]["val"]["ant"]) == len(saved["parts"]["val"]["bee"]) == 1
    assert sorted(saved["parts"]["train"]["ant"] + saved["parts"]["val"]["ant"]) == [f"ant/{number:03d}.png" for number in range(5)]
    recorded = dict(zip(saved["parts"]["train"]["bee"], saved["fingerprints"]["train"]["bee"], strict=True))
    assert recorded
    for name, fingerprint in recorded.items():
        assert fingerprint == hashlib.sha256((tmp_path / "data" / name).read_bytes()).hexdigest()
    assert saved["left_out"] == [{"name": "bee/broken.jpg", "reason": dataset.left_out[0].reason}]


def test_the_shared_cats_vs_dogs_is_loaded_by_name(unpacked: Callable[[str], Path]) -> None:
    """The 2,002 and 1,000 photographs are found by name in the data directory."""
    folder = unpacked("cats-vs-dogs")
    dataset = load_dataset(FinetuneConfig(data_dir=folder.parent))
    assert dataset.spec == "cats-vs-dogs"
    assert dataset.classes == ("cat", "dog")
    assert dataset.test is not None
    assert of_class(dataset, dataset.train) == {"cat": 801, "dog": 801}
    assert of_class(dataset, dataset.val) == {"cat": 200, "dog": 200}
    assert len(dataset.test) == 1000
    assert dataset.left_out == ()
    for part in dataset.parts.values():
        assert all(dataset.classes[label] == name.split("/")[1] for name, label in zip(part.names, part.labels, strict=True))


def test_two_classes_of_cifar10_are_loaded_by_name(unpacked: Callable[[str], Path]) -> None:
    dataset = load_dataset(FinetuneConfig(dataset="cifar10", data_dir=unpacked("cifar10").parent, classes=("cat", "dog"), limit=10))
    assert dataset.classes == ("cat", "dog")
    assert [len(part) for part in dataset.parts.values()] == [20, 20, 20]
    assert dataset.train.load(0).size == (32, 32)
