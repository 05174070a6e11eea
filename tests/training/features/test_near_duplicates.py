"""Neighbours match scikit-learn, hashes match SciPy's transform, and planted near-duplicates are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps
from scipy.fft import dctn
from sklearn.neighbors import NearestNeighbors

from tlcli.training.data.dataset import Dataset, Part
from tlcli.training.data.folder_source import FolderSource
from tlcli.training.features import part_overlap
from tlcli.training.features.near_duplicates import NearDuplicate, across, groups_of, near_duplicates
from tlcli.training.features.neighbours import nearest_neighbours, nearest_of_others, unit_rows
from tlcli.training.features.part_overlap import near_duplicates_across_parts
from tlcli.training.features.perceptual_hash import BITS, Thumbnail, hash_distance, hash_variants, thumbnail


def photograph(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    return ImageOps.autocontrast(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(6)))


def changed(image: Image.Image, kind: str, folder: Path) -> Image.Image:
    match kind:
        case "resized":
            return image.resize((84, 63))
        case "cropped":
            return image.crop((4, 2, 118, 87))
        case "mirrored":
            return ImageOps.mirror(image)
    image.save(folder / "small.jpg", quality=30)
    return Image.open(folder / "small.jpg").convert("RGB")


def test_neighbours_match_scikit_learn() -> None:
    features = np.random.default_rng(0).random((1500, 8), dtype=np.float32)
    rows = unit_rows(features)
    ours = nearest_neighbours(rows, 4)
    theirs = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(features - features.mean(0))
    distances, indices = theirs.kneighbors()
    assert ours.indices.tolist() == indices[:, :4].tolist()
    assert 1 - ours.similarities == pytest.approx(distances[:, :4], abs=1e-5)


def test_neighbours_of_other_groups() -> None:
    rows = unit_rows(np.random.default_rng(1).random((50, 4), dtype=np.float32))
    groups = np.arange(50) % 3
    ours = nearest_of_others(rows, groups, np.array([7, 20]), 3)
    for query, indices in zip((7, 20), ours.indices.tolist(), strict=True):
        others = [index for index in np.argsort(-(rows @ rows[query]), kind="stable") if groups[index] != groups[query]]
        assert indices == others[:3]
    alone = nearest_of_others(rows, (np.arange(50) > 0).astype(np.int64), np.array([3]), 3)
    assert alone.indices.tolist() == [[0, -1, -1]]


def test_a_hash_is_the_sign_of_the_lowest_frequencies() -> None:
    small = thumbnail(photograph(0))
    grid = np.asarray(Image.fromarray(small).resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float64)
    for variant, expected in enumerate((grid, grid[:, ::-1])):
        low = dctn(expected, norm="ortho")[:8, :8].reshape(-1)[1:]
        assert hash_variants(small)[variant].tolist() == (low > np.median(low)).tolist()


@pytest.mark.parametrize("kind", ["resized", "recompressed", "cropped", "mirrored"])
def test_planted_near_duplicates_are_close_and_others_are_not(kind: str, tmp_path: Path) -> None:
    originals = [photograph(seed) for seed in range(20)]
    hashes = [hash_variants(thumbnail(image)) for image in originals]
    planted = [hash_variants(thumbnail(changed(image, kind, tmp_path))) for image in originals]
    assert max(hash_distance(one, other) for one, other in zip(hashes, planted, strict=True)) <= 12
    apart = [hash_distance(one, other) for index, one in enumerate(hashes) for other in planted[index + 1 :]]
    assert np.mean(np.array(apart) <= 12) <= 0.05
    assert max(apart) <= BITS


def test_features_and_hashes_must_agree() -> None:
    images = [photograph(0), ImageOps.mirror(photograph(0)), photograph(1), photograph(2)]
    features = np.array([[1, 0, 0], [0.99, 0.05, 0], [0.99, 0, 0.05], [0, 1, 1]], dtype=np.float32)
    calls: list[int] = []

    def thumbnail_of(index: int) -> Thumbnail:
        calls.append(index)
        return thumbnail(images[index])

    (pair,) = near_duplicates(nearest_neighbours(unit_rows(features), 3), thumbnail_of)
    assert (pair.first, pair.second) == (0, 1)
    assert pair.distance <= 2
    assert sorted(calls) == [0, 1, 2]


def test_groups_and_splits_of_pairs() -> None:
    pairs = [NearDuplicate(0, 2, 1.0, 0), NearDuplicate(2, 4, 1.0, 0), NearDuplicate(3, 5, 1.0, 0)]
    assert groups_of(pairs, 6).tolist() == [0, 1, 0, 3, 0, 3]
    assert across(pairs, ["train"] * 4 + ["test"] * 2) == pairs[1:]


def dataset(folder: Path) -> Dataset:
    """Write four training images and two for validation, of which one is nearly the first and one is identical to the second."""
    for number in range(4):
        photograph(number).save(folder / f"train{number}.png")
    changed(photograph(0), "mirrored", folder).save(folder / "val0.png")
    photograph(1).save(folder / "val1.png")
    source = FolderSource(folder)
    parts = {}
    for name, count in (("train", 4), ("val", 2)):
        names = tuple(f"{name}{number}.png" for number in range(count))
        checked = source.check(names, lambda _: None)
        parts[name] = Part(np.zeros(count, dtype=np.int64), names, tuple(checked[image].fingerprint for image in names), source)
    return Dataset("x", ("a",), parts["train"], parts["val"], None, (), "")


def test_near_duplicates_across_parts_leave_out_identical_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(0)
    train = chance.normal(size=(4, 16)).astype(np.float32)
    embeddings = {"train": train, "val": train[:2] + 0.01}
    (pair,) = near_duplicates_across_parts(dataset(tmp_path), embeddings) or []
    assert (pair.image, pair.other) == (("val", 0), ("train", 0))
    monkeypatch.setattr(part_overlap, "MAX_PRODUCTS", 100)
    assert near_duplicates_across_parts(dataset(tmp_path), embeddings) is None
