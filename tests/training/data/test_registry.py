"""Data sets known by name: found in the data directory, or downloaded from a local server."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import io
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from tests.helpers.training.small_images import put_classes, put_image
from tests.helpers.training.web_server import Server, serving
from tlcli.contract.errors import DatasetError, HubError
from tlcli.training.data import registry
from tlcli.training.data.assemble import assemble
from tlcli.training.data.load import Dataset, known_datasets, load_dataset
from tlcli.training.data.registry import KNOWN, Known, cats_vs_dogs, torchvision_set
from tlcli.training.data.shapes import DEFAULT_COUNTS, SHAPES, load_boxes
from tlcli.training.data.torchvision_datasets import own_folder
from tlcli.training.runtime.progress import silent
from tlcli.training.settings.config import FinetuneConfig


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "web").mkdir()
    with serving(tmp_path / "web") as server:
        yield server


@pytest.fixture
def site(tmp_path: Path, web: Server) -> Path:
    """Return the folder that `web` serves."""
    return tmp_path / "web"


def load(known: Known, data_dir: Path, **options: object) -> Dataset:
    config = FinetuneConfig.model_validate({"dataset": known.name, "data_dir": data_dir, **options})
    return assemble(known.load(data_dir, config.seed, silent), config, silent)


def image_bytes(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def cats_from(url: str) -> Known:
    return dataclasses.replace(KNOWN["cats-vs-dogs"], open=functools.partial(cats_vs_dogs, url=url))


def test_cats_vs_dogs_is_downloaded_from_microsofts_archive(site: Path, web: Server, tmp_path: Path) -> None:
    with zipfile.ZipFile(site / "pets.zip", "w") as archive:
        for number in range(6):
            archive.writestr(f"PetImages/Cat/{number}.jpg", image_bytes(number))
            archive.writestr(f"PetImages/Dog/{number}.jpg", image_bytes(100 + number))
        archive.writestr("PetImages/Cat/666.jpg", b"")  # as in the real archive
        archive.writestr("PetImages/Dog/Thumbs.db", b"no image")
        archive.writestr("readme[1].txt", b"")
    known = cats_from(web.address + "pets.zip")
    dataset = load(known, tmp_path / "data")
    assert dataset.classes == ("Cat", "Dog")
    assert len(dataset.train) + len(dataset.val) == 12
    assert [left.name for left in dataset.left_out] == ["Cat/666.jpg"]
    assert sorted(child.name for child in (tmp_path / "data").iterdir()) == ["cats-vs-dogs"]
    assert sorted(child.name for child in (tmp_path / "data" / "cats-vs-dogs").iterdir()) == ["PetImages", "readme[1].txt"]
    assert load(known, tmp_path / "data").fingerprint == dataset.fingerprint
    assert web.asked == ["/pets.zip"], "the second time, the folder exists"


@pytest.mark.parametrize("content", [None, b"<html>an error page</html>"])
def test_a_failed_download_leaves_nothing_and_gives_advice(site: Path, web: Server, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (site / "pets.zip").write_bytes(content)
    with pytest.raises(HubError) as refusal:
        load(cats_from(web.address + "pets.zip"), tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []
    if content is None:
        folder = tmp_path / "data" / "cats-vs-dogs"
        assert str(refusal.value) == (
            f"pets.zip could not be downloaded: {web.address}pets.zip: HTTP 404 File not found. Put the unpacked data set in {folder}"
            " (train/<class>/<image>), use --data-dir to name the folder that contains cats-vs-dogs, or use another --dataset:"
            " a folder of images, or shapes, which needs no download"
        )


def test_kaggles_layout_is_recognized(tmp_path: Path) -> None:
    for number in range(5):
        put_image(tmp_path / "cats-vs-dogs" / "train" / f"cat.{number}.jpg")
        put_image(tmp_path / "cats-vs-dogs" / "train" / f"dog.{number}.jpg")
        put_image(tmp_path / "cats-vs-dogs" / "test1" / f"{number}.jpg")
    dataset = load_dataset(FinetuneConfig(data_dir=tmp_path))
    assert dataset.classes == ("cat", "dog")
    assert all(
        name.startswith(f"train/{dataset.classes[label]}.") for name, label in zip(dataset.train.names, dataset.train.labels, strict=True)
    )


DIGITS = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
DIGIT_LABELS = (np.arange(40) % 4).astype(np.uint8)


def idx(values: np.ndarray) -> bytes:
    """Encode an array in the format of http://yann.lecun.com/exdb/mnist: magic number, sizes, values."""
    return struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.fixture
def small_mnist(site: Path, web: Server) -> Callable[[], Any]:
    """Return a small data set with torchvision's MNIST interface, from the test server."""
    resources = []
    for prefix, chosen in (("train", slice(0, 28)), ("t10k", slice(28, 40))):
        for kind, values in (("images-idx3", DIGITS), ("labels-idx1", DIGIT_LABELS)):
            name = f"{prefix}-{kind}-ubyte.gz"
            (site / name).write_bytes(gzip.compress(idx(values[chosen])))
            resources.append((name, hashlib.md5((site / name).read_bytes()).hexdigest()))
    mirrors = [web.address + "gone/", web.address]
    classes = ["0 - zero", "1 - one", "2 - two", "3 - three"]
    return lambda: type("MNIST", (torchvision.datasets.MNIST,), {"resources": resources, "mirrors": mirrors, "classes": classes})


def mnist_from(dataset: Callable[[], Any]) -> Known:
    opened = functools.partial(torchvision_set, dataset=dataset, keeps="MNIST", labels=tuple("0123"))
    return dataclasses.replace(KNOWN["mnist"], open=opened)


def test_mnist_is_read_by_torchvision(
    small_mnist: Callable[[], Any], web: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    known = mnist_from(small_mnist)
    dataset = load(known, tmp_path / "data", val_fraction=0.25)
    assert dataset.classes == ("0", "1", "2", "3")
    assert dataset.test is not None
    assert [len(part) for part in dataset.parts.values()] == [20, 8, 12]
    for part, prefix, start in ((dataset.train, "train", 0), (dataset.val, "train", 0), (dataset.test, "test", 28)):
        for index, name in enumerate(part.names):
            number = start + int(name.removeprefix(f"mnist/{prefix}/"))
            expected = np.repeat(DIGITS[number][..., None], 3, -1)
            np.testing.assert_array_equal(np.asarray(part.load(index)), expected)
            assert part.labels[index] == DIGIT_LABELS[number]
            assert part.fingerprints[index] == hashlib.sha256(b"28 28 " + expected.tobytes()).hexdigest()
    kept = sorted(path.relative_to(tmp_path / "data").as_posix() for path in (tmp_path / "data").rglob("*") if path.is_file())
    assert kept == [
        f"mnist/MNIST/raw/{name}-ubyte" for name in ("t10k-images-idx3", "t10k-labels-idx1", "train-images-idx3", "train-labels-idx1")
    ]
    asked = len(web.asked)
    assert load(known, tmp_path / "data", val_fraction=0.25).fingerprint == dataset.fingerprint
    assert len(web.asked) == asked
    assert capfd.readouterr() == ("", ""), "no library shows a progress bar"


def test_images_of_arrays_survive_pickling(small_mnist: Callable[[], Any], tmp_path: Path) -> None:
    small_mnist()
    train = load(dataclasses.replace(KNOWN["mnist"], open=mnist_from(small_mnist).open), tmp_path).train
    # The class created in this test cannot be pickled by name; the real one can.
    train.source.parts["train"].dataset.__class__ = torchvision.datasets.MNIST  # type: ignore[attr-defined]
    train.source.parts["test"].dataset.__class__ = torchvision.datasets.MNIST  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(train)).load(3).tobytes() == train.load(3).tobytes()


def test_a_failed_download_of_arrays_leaves_nothing(small_mnist: Callable[[], Any], site: Path, tmp_path: Path) -> None:
    (site / "t10k-labels-idx1-ubyte.gz").write_bytes(b"other content")
    with pytest.raises(HubError, match=r"t10k-labels-idx1-ubyte\.gz could not be downloaded: .*404.*; .*wrong content"):
        load(mnist_from(small_mnist), tmp_path / "data")
    assert list((tmp_path / "data" / "mnist").iterdir()) == []


def test_damaged_arrays_are_reported(small_mnist: Callable[[], Any], tmp_path: Path) -> None:
    load(mnist_from(small_mnist), tmp_path)
    (tmp_path / "mnist" / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"short")
    with pytest.raises(DatasetError, match=r"mnist: .*/MNIST is incomplete or damaged \(.*\): remove it to download it again"):
        load(mnist_from(small_mnist), tmp_path)


def test_cifar_is_read_by_torchvision(site: Path, web: Server, tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
    members = {
        "batches.meta": {"label_names": ["plane", "car"]},
        **{f"data_batch_{n}": {"data": values[10 * n : 10 * n + 10].reshape(10, -1), "labels": [0, 1] * 5} for n in range(1, 6)},
        "test_batch": {"data": values[:10].reshape(10, -1), "labels": [1, 0] * 5},
    }
    files = {name: pickle.dumps(content) for name, content in members.items()}
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    with tarfile.open(site / "cifar.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    own = {
        "url": web.address + "cifar.tar.gz",
        "filename": "cifar.tar.gz",
        "tgz_md5": hashlib.md5((site / "cifar.tar.gz").read_bytes()).hexdigest(),
        "train_list": [[name, sums[name]] for name in files if name.startswith("data_batch")],
        "test_list": [["test_batch", sums["test_batch"]]],
        "meta": {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]},
    }
    small = type("CIFAR10", (torchvision.datasets.CIFAR10,), own)
    opened = functools.partial(torchvision_set, dataset=lambda: small, keeps="cifar-10-batches-py")
    known = dataclasses.replace(KNOWN["cifar10"], open=opened)
    dataset = load(known, tmp_path / "data", val_fraction=0.2)
    assert dataset.classes == ("plane", "car")
    assert [len(part) for part in dataset.parts.values()] == [40, 10, 10]
    for part in (dataset.train, dataset.val):
        for index, name in enumerate(part.names):
            number = int(name.removeprefix("cifar10/train/"))
            np.testing.assert_array_equal(np.asarray(part.load(index)), values[10 + number].transpose(1, 2, 0))
            assert part.labels[index] == number % 2
    assert [path.name for path in (tmp_path / "data" / "cifar10").iterdir()] == ["cifar-10-batches-py"]
    # A pickle with another checksum than the publisher's is not opened.
    (tmp_path / "data" / "cifar10" / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps("other"))
    with pytest.raises(DatasetError, match="is incomplete or damaged"):
        load(known, tmp_path / "data")


def test_the_registry_agrees_with_torchvision() -> None:
    """Compares the folder and the number of classes of each data set with torchvision's."""
    for known in KNOWN.values():
        if getattr(known.open, "func", None) is torchvision_set:
            options = known.open.keywords  # type: ignore[attr-defined]
            dataset = options["dataset"]()
            assert options["keeps"] == own_folder(dataset)
            assert options["labels"] is None or len(options["labels"]) == known.classes == len(dataset.classes)


def test_a_known_name_can_be_a_folder_of_images_without_torchvision(tmp_path: Path) -> None:
    put_classes(tmp_path / "mnist" / "train", **{"3": 4, "7": 4})
    code = f"""if True:
        import sys
        from pathlib import Path
        from tlcli.training.settings.config import FinetuneConfig
        from tlcli.training.data.load import load_dataset
        print(load_dataset(FinetuneConfig(dataset="mnist", data_dir=Path({str(tmp_path)!r}))).classes)
        print(sorted({{"torch", "torchvision", "timm"}} & sys.modules.keys()))"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")[:2] == [
        "('3', '7')",
        "[]",
    ]


def test_shapes_are_drawn_once_for_each_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "DEFAULT_COUNTS", {"train": 4, "val": 2, "test": 2})
    dataset = load_dataset(FinetuneConfig(dataset="shapes", data_dir=tmp_path))
    assert dataset.classes == SHAPES
    assert [len(part) for part in dataset.parts.values()] == [24, 12, 12]
    (folder,) = tmp_path.iterdir()
    boxes = load_boxes(folder)
    assert boxes.keys() == {name for part in dataset.parts.values() for name in part.names}
    monkeypatch.setattr(registry, "write_shapes", None)
    assert load_dataset(FinetuneConfig(dataset="shapes", data_dir=tmp_path)).fingerprint == dataset.fingerprint
    monkeypatch.undo()
    assert KNOWN["shapes"].folder(tmp_path, seed=1) != KNOWN["shapes"].folder(tmp_path, seed=0) == folder


def test_known_datasets_report_which_are_present(tmp_path: Path) -> None:
    put_classes(tmp_path / "cifar10" / "train", cat=1, dog=1)
    (tmp_path / "mnist").mkdir()
    rows = {row.name: row for row in known_datasets(tmp_path)}
    assert list(rows) == ["cats-vs-dogs", "cifar10", "cifar100", "mnist", "fashion-mnist", "shapes"]
    assert [row.name for row in rows.values() if row.present] == ["cifar10"]
    assert rows["cifar10"].path == tmp_path / "cifar10"
    assert (rows["cifar100"].classes, rows["cifar100"].images) == (100, 60_000)
    assert rows["shapes"].images == len(SHAPES) * sum(DEFAULT_COUNTS.values())
