"""Images and classes that are chosen for an evaluation, and messages about broken ones."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlcli.contract.errors import DatasetError
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.evaluation.cam_dataset import label_ids, open_images
from tlcli.training.data.shapes import write_shapes

SMALL = Preprocessing(height=16, width=16, crop_pct=1.0)


def put(root: Path, **classes: int) -> Path:
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (20, 20), (number, 0, 0)).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize(("limit", "taken"), [(3, (1, 1, 1)), (9, (2, 3, 4)), (7, (2, 2, 3)), (100, (2, 8, 8))])
def test_images_are_spread_evenly_over_the_classes(limit: int, taken: tuple[int, ...], tmp_path: Path) -> None:
    images = open_images(str(put(tmp_path, a=2, b=8, c=8)), limit, seed=0)
    counts = Counter(sample.class_name for sample in images.read(SMALL))
    assert sorted(counts.values()) == sorted(taken)
    assert counts["a"] == taken[0]
    assert len(images) == sum(taken)


def test_a_seed_chooses_the_same_images_again(tmp_path: Path) -> None:
    put(tmp_path, a=20, b=20)
    first, again, other = ([sample.name for sample in open_images(str(tmp_path), 8, seed).read(SMALL)] for seed in (0, 0, 1))
    assert first == again
    assert set(first) != set(other)
    more = [sample.name for sample in open_images(str(tmp_path), 12, 0).read(SMALL)]
    assert more[:8] == first


def test_broken_images_are_replaced_and_named(tmp_path: Path) -> None:
    put(tmp_path, a=4, b=4)
    for number in range(3):
        (tmp_path / "a" / f"{number}.png").write_bytes(b"broken")
    images = open_images(str(tmp_path), 5, seed=0)
    samples = list(images.read(SMALL))
    assert Counter(sample.class_name for sample in samples) == {"a": 1, "b": 4}
    assert [sample.number for sample in samples] == list(range(5))
    assert {left.name for left in images.left_out} == {f"a/{number}.png" for number in range(3)}
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(DatasetError, match="none of its 8 images can be read"):
        list(images.read(SMALL))


def test_the_test_part_is_taken_with_its_boxes(tmp_path: Path) -> None:
    write_shapes(tmp_path, {"train": 2, "val": 1, "test": 2}, seed=0, size=32)
    images = open_images(str(tmp_path), 100, seed=0)
    assert images.part == "test"
    samples = list(images.read(Preprocessing(height=64, width=64, crop_pct=1.0)))
    assert len(samples) == 12
    boxes = json.loads((tmp_path / "boxes.json").read_text())
    for sample in samples:
        left, top, right, bottom = (2 * edge for edge in boxes[sample.name])
        assert sample.region is not None
        assert sample.region[top:bottom, left:right].all()
        assert sample.region.sum() == (bottom - top) * (right - left)


def test_without_parts_every_image_is_taken_but_no_masks(tmp_path: Path) -> None:
    put(tmp_path, a=3, b=2)
    for name in ("a/0", "b/1"):
        path = tmp_path / "masks" / f"{name}.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((20, 20), 255, np.uint8)).save(path)
    images = open_images(str(tmp_path), 100, seed=0)
    assert (images.part, images.classes) == ("all", ("a", "b"))
    regions = {sample.name: sample.region for sample in images.read(SMALL)}
    assert len(regions) == 5
    assert {name for name, region in regions.items() if region is not None} == {"a/0.png", "b/1.png"}


def test_a_class_may_be_called_masks(tmp_path: Path) -> None:
    assert open_images(str(put(tmp_path, masks=3, none=2)), 100, seed=0).classes == ("masks", "none")


def test_folders_find_their_labels() -> None:
    assert label_ids(("cat", "Dog"), ("dog", "bird", "cat"), "here") == {"cat": 2, "Dog": 0}
    assert label_ids(("a",), ("A", "a"), "here") == {"a": 1}
    assert label_ids(("Cafe\u0301",), ("tea", "caf\u00e9"), "here") == {"Cafe\u0301": 1}
    with pytest.raises(DatasetError, match=r"here: class 'crane': 2 classes of the model have this label \(ids 0, 2\)"):
        label_ids(("crane",), ("crane", "tea", "crane"), "here")
    with pytest.raises(DatasetError, match="here: the model has no class cow; it has: dog, cat: rename the folders"):
        label_ids(("cat", "cow"), ("dog", "cat"), "here")
