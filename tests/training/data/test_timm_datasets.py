"""timm's data set specs: torchvision's arrays, Hugging Face's tables, and streams."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.training.small_images import put_classes
from tlcli.contract.errors import DatasetError, HubError
from tlcli.training.data.assemble import assemble
from tlcli.training.data.load import Dataset, load_dataset
from tlcli.training.data.timm_datasets import is_timm_spec, list_timm
from tlcli.training.runtime.progress import silent
from tlcli.training.settings.config import FinetuneConfig


def load(spec: str, data_dir: Path, create: Any = None, **options: object) -> Dataset:
    config = FinetuneConfig.model_validate({"dataset": spec, "data_dir": data_dir, **options})
    return assemble(list_timm(config, silent, create), config, silent)


@pytest.mark.parametrize("spec", ["torch/cifar10", "hfds/user/name", "WDS/x", "tfds/mnist"])
def test_timm_specs_are_recognized(spec: str) -> None:
    assert is_timm_spec(spec)


@pytest.mark.parametrize("spec", ["torch", "torch/", "hf/user/name", "folder/torch", "cifar10"])
def test_other_names_are_not_timm_specs(spec: str) -> None:
    assert not is_timm_spec(spec)


def test_torch_specs_are_opened_by_timm(tmp_path: Path) -> None:
    """Uses a fake data set in place of the one that timm would open."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 9, 9), dtype=np.uint8)

    class Letters:
        class_to_idx = {"b": 1, "a": 0}  # noqa: RUF012 - as in torchvision

        def __init__(self, numbers: list[int]) -> None:
            self.numbers = numbers

        def __len__(self) -> int:
            return len(self.numbers)

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.fromarray(pixels[self.numbers[index]]), self.numbers[index] % 2

    asked: list[dict[str, object]] = []

    def create(name: str, **options: object) -> Letters:
        asked.append({"name": name, **options})
        return Letters(list(range(20)) if options["split"] == "train" else list(range(20, 30)))

    dataset = load("torch/letters", tmp_path, create)
    assert [options["root"] for options in asked] == [tmp_path, tmp_path]
    assert dataset.classes == ("a", "b")
    assert dataset.test is not None
    assert [len(part) for part in dataset.parts.values()] == [16, 4, 10]
    assert dataset.test.names[0] == "torch/letters/test/0"
    np.testing.assert_array_equal(np.asarray(dataset.test.load(0))[..., 2], pixels[20])


def test_torch_image_folder_is_a_folder_of_images(tmp_path: Path) -> None:
    put_classes(tmp_path, ant=4, bee=4)
    assert load("torch/image_folder", tmp_path).classes == ("ant", "bee")


def test_missing_files_of_torch_specs_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"torch/places365 \(split train\): RuntimeError: The file .*categories_places365.txt does not exist"
    ):
        load("torch/places365", tmp_path)


@pytest.fixture
def own_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")


@pytest.mark.usefixtures("own_hub_cache")
def test_hugging_face_is_read_undecoded(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    put_classes(folder / "train", ant=10, bee=10)
    put_classes(folder / "test", ant=2, bee=2)
    broken = (folder / "train" / "bee" / "003.png").read_bytes()[:60]
    (folder / "train" / "bee" / "003.png").write_bytes(broken)
    dataset = load(f"hfds/{folder}", tmp_path)
    assert dataset.classes == ("ant", "bee")
    assert dataset.test is not None
    assert len(dataset.train) + len(dataset.val) == 19
    assert len(dataset.test) == 4
    assert [left.name for left in dataset.left_out] == [f"hfds/{folder}/train/13"], "a broken image is not replaced by another"
    contents = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "train").rglob("*.png")}
    contents.remove(hashlib.sha256(broken).hexdigest())
    assert set(dataset.train.fingerprints) | set(dataset.val.fingerprints) == contents
    assert capfd.readouterr() == ("", ""), "no library shows a progress bar"


@pytest.mark.usefixtures("own_hub_cache")
def test_an_unreachable_hugging_face_hub_is_reported_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(HubError) as refusal:
        load("hfds/nobody/nothing", tmp_path)
    assert time.monotonic() - started < 10
    assert str(refusal.value) == (
        f"hfds/nobody/nothing: not in Hugging Face's cache ({tmp_path}/hub), and http://127.0.0.1:9: cannot be reached"
        " ([Errno 111] Connection refused): download it on a machine with internet access, or use a folder of images as --dataset"
    )
    assert not huggingface_hub.constants.HF_HUB_OFFLINE, "offline mode ends with the request"


class Stream:
    """Fake of timm's streams for `wds/` and `tfds/`: an iterable of images and labels."""

    def __init__(self, labels: list[int], names: dict[str, int]) -> None:
        self.labels = labels
        self.reader = SimpleNamespace(class_to_idx=names)

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        for number, label in enumerate(self.labels):
            yield Image.new("RGB", (4, 3), (number, label, 0)), label


@pytest.mark.parametrize("names", [{}, {"T-shirt/top": 0, "../evil": 1}])
def test_streams_are_copied_to_a_folder_only_once(tmp_path: Path, names: dict[str, int]) -> None:
    asked: list[str] = []

    def create(name: str, *, split: str, **_: object) -> Stream:
        asked.append(split)
        if split == "train":
            return Stream([0, 1] * 5, names)
        if split == "valid":
            return Stream([0, 0, 1], names)
        raise ValueError(f"no split {split}")

    dataset = load("tfds/some/set", tmp_path, create)
    assert dataset.classes == (("-evil", "T-shirt-top") if names else ("0000", "0001"))
    assert dataset.test is None
    assert [len(part) for part in dataset.parts.values()] == [10, 3]
    assert [child.name for child in tmp_path.iterdir()] == ["tfds-some-set"]
    image = dataset.train.load(len(dataset.train) - 1)
    label = 0 if names else 1
    assert image.getpixel((0, 0))[1:] == (label, 0)  # type: ignore[index]
    asked.clear()
    assert load("tfds/some/set", tmp_path, create).fingerprint == dataset.fingerprint
    assert asked == []


def test_a_stream_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    class Broken(Stream):
        def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
            yield from super().__iter__()
            raise RuntimeError("a shard is\nmissing")

    with pytest.raises(DatasetError, match=r"wds/x \(train\): RuntimeError: a shard is$"):
        load("wds/x", tmp_path, lambda name, **_: Broken([0, 1], {}))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_without_printing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def create(name: str, **_: object) -> object:
        print("Please install it")
        raise ModuleNotFoundError("No module named 'tensorflow'")

    with pytest.raises(DatasetError) as refusal:
        load("tfds/mnist", tmp_path, create)
    assert str(refusal.value) == "tfds/mnist: needs a package that is not installed: No module named 'tensorflow'"
    assert capsys.readouterr().out == ""


def test_load_dataset_accepts_timm_specs(tmp_path: Path) -> None:
    put_classes(tmp_path, ant=4, bee=4)
    assert load_dataset(FinetuneConfig(dataset="torch/folder", data_dir=tmp_path)).classes == ("ant", "bee")
