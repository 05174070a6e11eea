"""Network inputs in training: the same as in serving, or an augmentation that depends only on seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tests.helpers.training.small_images import put_image
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training.data.load import Part, load_dataset
from tlcli.training.data.transforms import ImageDataset
from tlcli.training.settings.augmentation import Augmentation, default_augmentation
from tlcli.training.settings.config import FinetuneConfig

INPUT = Preprocessing(height=32, width=24, interpolation="bicubic")
NOTHING = Augmentation(scale=(1, 1), ratio=(1, 1), hflip=False, brightness=0, contrast=0, saturation=0)


@pytest.fixture
def part(tmp_path: Path) -> Part:
    for name in ("ant", "bee"):
        for number in range(8):
            put_image(tmp_path / name / f"{number}.png", size=(60 + number, 50))
    return load_dataset(FinetuneConfig(dataset=str(tmp_path))).train


def test_evaluation_uses_the_preprocessing_of_serving(part: Part) -> None:
    images = ImageDataset(part, INPUT)
    assert len(images) == len(part) == 12
    for index in range(len(part)):
        values, label, number = images[index]
        assert values.dtype == torch.uint8
        np.testing.assert_array_equal(values.numpy(), INPUT.apply(part.load(index)))
        assert (label, number) == (part.labels[index], index)


@pytest.mark.parametrize("augmentation", [None, Augmentation()])
def test_inputs_do_not_depend_on_the_number_of_workers(part: Part, augmentation: Augmentation | None) -> None:
    images = ImageDataset(part, INPUT, augmentation, seed=3, view=2)
    alone = list(DataLoader(images, batch_size=5))
    parallel = list(DataLoader(images, batch_size=5, num_workers=2))
    for one, other in zip(alone, parallel, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    values, labels, indices = alone[0]
    assert values.shape == (5, 32, 24, 3)
    assert labels.dtype == indices.dtype == torch.int64


def test_the_augmentation_depends_on_seed_view_and_index(part: Part) -> None:
    def seen(seed: int, view: int, index: int = 0) -> bytes:
        return ImageDataset(part, INPUT, Augmentation(), seed, view)[index][0].numpy().tobytes()

    assert seen(1, 1) == seen(1, 1)
    assert len({seen(1, 1), seen(1, 2), seen(2, 1), seen(2, 2), seen(0, 0), seen(0, 3)}) == 6
    torch.manual_seed(0)
    before = seen(1, 1)
    torch.manual_seed(1)
    assert seen(1, 1) == before


def test_each_image_is_augmented_differently(part: Part) -> None:
    """The same image at two indices of a part is cropped differently."""
    twice = ImageDataset(part.take([0, 0]), INPUT, Augmentation(), seed=1)
    assert not torch.equal(twice[0][0], twice[1][0])


def test_augmentation_leaves_the_global_generator_unchanged(part: Part) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    ImageDataset(part, INPUT, Augmentation())[0]
    assert torch.equal(torch.rand(3), expected)


def test_without_random_transforms_the_augmentation_is_a_resize(tmp_path: Path) -> None:
    """Each setting disables its transform, and the interpolation is that of the evaluation."""
    for name in ("ant", "bee"):
        for number in range(2):
            put_image(tmp_path / name / f"{number}.png", size=(40, 40))
    part = load_dataset(FinetuneConfig(dataset=str(tmp_path))).train
    square = Preprocessing(height=20, width=20, interpolation="bicubic")
    for view in range(10):
        seen = ImageDataset(part, square, NOTHING, view=view)[0][0].numpy()
        expected = np.asarray(part.load(0).resize((20, 20), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(seen, expected)


def views(part: Part, augmentation: Augmentation, count: int = 60) -> list[np.ndarray]:
    shape = Preprocessing(height=40, width=40, interpolation="bilinear")
    return [ImageDataset(part, shape, augmentation, view=view)[0][0].numpy().astype(float) for view in range(count)]


@pytest.fixture
def ramp(tmp_path: Path) -> Part:
    """Return images whose red rises by one per column, from 50 to 149; green and blue are 128."""
    values = np.full((100, 100, 3), 128, dtype=np.uint8)
    values[..., 0] = np.arange(50, 150)
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.fromarray(values).save(tmp_path / name / f"{number}.png")
    return load_dataset(FinetuneConfig(dataset=str(tmp_path))).train


def test_half_of_the_views_are_mirrored_with_hflip_and_none_without(ramp: Part) -> None:
    mirrored = [seen[0, 0, 0] > seen[0, -1, 0] for seen in views(ramp, NOTHING.model_copy(update={"hflip": True}))]
    assert 0.3 < np.mean(mirrored) < 0.7
    assert not any(seen[0, 0, 0] > seen[0, -1, 0] for seen in views(ramp, NOTHING))


def test_scale_is_the_share_of_the_images_area(ramp: Part) -> None:
    widths = [
        (seen[20, -1, 0] - seen[20, 0, 0]) / 39 * 40 / 100 for seen in views(ramp, NOTHING.model_copy(update={"scale": (0.25, 0.64)}))
    ]
    assert min(widths) >= 0.5 - 0.03
    assert max(widths) <= 0.8 + 0.03
    assert max(widths) - min(widths) > 0.15


def test_brightness_stays_in_its_range(ramp: Part) -> None:
    factors = np.array([seen[..., 1].mean() / 128 for seen in views(ramp, NOTHING.model_copy(update={"brightness": 0.2}))])
    assert factors.min() > 0.79
    assert factors.max() < 1.21
    assert factors.std() > 0.05


def test_handwritten_characters_are_not_mirrored() -> None:
    assert not default_augmentation("mnist").hflip
    assert not default_augmentation("torch/KMNIST").hflip
    mnist, cifar = default_augmentation("mnist").scale, default_augmentation("cifar10").scale
    assert mnist is not None
    assert cifar is not None
    assert mnist[0] > cifar[0]
    for spec in ("cats-vs-dogs", "fashion-mnist", "path/to/folder"):
        assert default_augmentation(spec) == Augmentation()
