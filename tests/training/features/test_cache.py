"""Feature cache: the same features as without it, computed once, by an unchanged network."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.helpers.training.feature_work import BATCH, SIZE, cache
from tests.helpers.training.tiny_training import config, digest, put_colours
from tlcli.contract.errors import ImageError, SettingsError, WeightsError
from tlcli.training.data.dataset import CheckResult, Part
from tlcli.training.data.load import load_dataset
from tlcli.training.data.transforms import ImageDataset
from tlcli.training.engine.head import classify_embeddings
from tlcli.training.features.cache import View
from tlcli.training.runtime.progress import Advance
from tlcli.training.settings.augmentation import Augmentation

REPOSITORY = Path(__file__).parents[3]
VIEW = View(Augmentation(), number=0, seed=0)


class Gone:
    """Source whose images must not be read."""

    def load(self, name: str) -> Image.Image:
        raise ImageError(f"{name}: was read again")

    def check(self, names: Sequence[str], advance: Advance) -> dict[str, CheckResult]:
        raise NotImplementedError


def gone(part: Part) -> Part:
    return Part(part.labels, part.names, part.fingerprints, Gone())


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_colours(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def part(colours: Path) -> Part:
    return load_dataset(config(colours)).train


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TLCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.mark.parametrize("head", ["linear", "mlp:8", "original"])
@pytest.mark.parametrize("view", [None, VIEW], ids=["plain", "augmented"])
def test_cached_features_equal_those_computed_directly(part: Part, head: str, view: View | None) -> None:
    features = cache(head)
    kept = features.embeddings(part, "features", view)
    batch = ImageDataset(part, SIZE, view.augmentation if view else None)
    images = torch.stack([batch[index][0] for index in range(len(part))])
    network = features.network.eval()
    with torch.no_grad():
        expected = network.embed(network.features(network.normalise(images)))
        torch.testing.assert_close(torch.from_numpy(np.array(kept)), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(classify_embeddings(network, kept), network(network.normalise(images)), rtol=1e-5, atol=1e-6)


def test_a_second_call_reads_no_image(part: Part) -> None:
    first = cache().embeddings(part, "features")
    again = cache(classes=9).embeddings(gone(part), "features")  # features do not depend on the number of classes
    np.testing.assert_array_equal(first, again)
    assert isinstance(again, np.memmap)
    with pytest.raises(ImageError, match="was read again"):
        cache(weights="others").embeddings(gone(part), "features")


@pytest.mark.parametrize(
    "view",
    [View(Augmentation(), 1, 0), View(Augmentation(), 0, 1), View(Augmentation(hflip=False), 0, 0), None],
    ids=["number", "seed", "augmentation", "none"],
)
def test_each_view_has_its_own_features(part: Part, view: View | None) -> None:
    one = cache().embeddings(part, "features", VIEW)
    np.testing.assert_array_equal(one, cache().embeddings(gone(part), "features", VIEW))
    other = cache().embeddings(part, "features", view)
    assert not np.allclose(one, other, rtol=1e-3)


def test_features_follow_the_order_of_the_images(part: Part) -> None:
    forward = np.array(cache().embeddings(part, "features"))
    backward = cache().embeddings(part.take(np.arange(len(part))[::-1]), "features")
    np.testing.assert_allclose(forward[::-1], backward, rtol=1e-5, atol=1e-6)


def test_features_do_not_depend_on_the_number_of_workers(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlcli.training.data.dataloader._MIN_IMAGES_FOR_WORKERS", 1)
    alone = np.array(cache(weights="a").embeddings(part, "features", VIEW))
    np.testing.assert_array_equal(alone, cache(weights="b", workers=2).embeddings(part, "features", VIEW))
    with pytest.raises(ImageError, match=r"^train/blue/0.png: was read again$"):  # not the worker's traceback
        cache(weights="c", workers=2).embeddings(gone(part), "features")


def test_extraction_changes_no_tensor_of_the_network(part: Part) -> None:
    """Batch norm statistics and the training mode are unchanged, too."""
    features = cache()
    features.network.train()
    before = digest(features.network)
    features.embeddings(part, "features")
    assert digest(features.network) == before
    assert features.network.training


def test_a_failure_leaves_nothing_behind(part: Part, cache_folder: Path) -> None:
    broken = Part(part.labels, part.names, part.fingerprints, HalfGone(part))
    with pytest.raises(ImageError):
        cache().embeddings(broken, "features")
    assert list(cache_folder.iterdir()) == []


class HalfGone(Gone):
    def __init__(self, part: Part) -> None:
        self.part = part

    def load(self, name: str) -> Image.Image:
        index = self.part.names.index(name)
        return self.part.load(index) if index < len(self.part) - 2 else super().load(name)


def test_a_damaged_file_is_computed_again(part: Part, cache_folder: Path) -> None:
    first = np.array(cache().embeddings(part, "features"))
    (file,) = cache_folder.iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    np.testing.assert_array_equal(cache().embeddings(part, "features"), first)


def test_features_that_are_not_finite_are_rejected(part: Part, cache_folder: Path) -> None:
    features = cache()
    nn.init.constant_(next(features.network.backbone.parameters()), float("nan"))
    with pytest.raises(WeightsError, match="the features are not finite: use undamaged --weights, and the --mean"):
        features.embeddings(part, "features")
    assert list(cache_folder.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_reported(part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TLCLI_CACHE", str(tmp_path / "file"))
    with pytest.raises(SettingsError, match=r"cannot store the features: .*set TLCLI_CACHE to another folder"):
        cache().embeddings(part, "features")


# ---- interrupted computations


@pytest.fixture(scope="module")
def killed(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file left by a process that was killed after 20 of the 36 images, in batches of 8."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.helpers.training.feature_work", str(colours), "20"]
    process = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, "TLCLI_CACHE": str(folder)}, timeout=120, check=False)
    assert process.returncode == -signal.SIGKILL
    (unfinished,) = (folder / "features").iterdir()
    return unfinished


@pytest.mark.parametrize("damage", ["none", "torn batch", "torn header"])
def test_a_killed_computation_is_resumed(
    part: Part, killed: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr("tlcli.training.features.cache._BATCH", BATCH)
    expected = np.array(cache(weights="uninterrupted").embeddings(part, "features"))
    left = {"none": killed.read_bytes(), "torn batch": killed.read_bytes() + b"torn" * 60, "torn header": killed.read_bytes()[:40]}
    (cache_folder / killed.name).write_bytes(left[damage])
    runs: list[int] = []
    said: list[str] = []
    features = cache(said=said)
    stem = next(module for module in features.network.backbone.modules() if isinstance(module, nn.Conv2d))
    stem.register_forward_hook(lambda _, __, output: runs.append(len(output)))
    kept = features.embeddings(part, "features")
    assert kept.tobytes() == expected.tobytes()
    assert sum(runs) == (36 if damage == "torn header" else 36 - 22)  # batches of 8, 7, 7, 7 and 7
    assert said == (["features: continuing an interrupted computation, 22 images done"] if damage != "torn header" else [])
    assert not list(cache_folder.glob("*.partial"))


def test_features_of_this_run_are_never_pruned(part: Part, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLCLI_CACHE_GB", "0")
    features = cache()
    features.embeddings(part, "features")
    features.embeddings(part, "features", VIEW)
    assert len(list(cache_folder.iterdir())) == 2
    cache(weights="of another run").embeddings(part, "features")
    assert len(list(cache_folder.iterdir())) == 1
