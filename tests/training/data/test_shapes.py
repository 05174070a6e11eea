"""Synthetic shapes: reproducible to the byte for a seed, with correct bounding boxes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tlcli.contract.errors import DatasetError
from tlcli.training.data.shapes import BOXES_FILE, SHAPES, draw, load_boxes, shapes_folder, write_shapes

COUNTS = {"train": 5, "val": 2, "test": 3}


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_images(tmp_path: Path) -> None:
    for name, seed in (("first", 7), ("again", 7), ("other", 8)):
        write_shapes(tmp_path / name, COUNTS, seed)
    assert files(tmp_path / "first") == files(tmp_path / "again")
    first, other = files(tmp_path / "first"), files(tmp_path / "other")
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)


def test_every_image_has_a_folder_and_a_box(tmp_path: Path) -> None:
    write_shapes(tmp_path, COUNTS, seed=1, size=48)
    images = files(tmp_path)
    assert json.loads(images.pop(BOXES_FILE)).keys() == images.keys() == load_boxes(tmp_path).keys()
    for part, count in COUNTS.items():
        assert {child.name for child in (tmp_path / part).iterdir()} == set(SHAPES)
        for shape in SHAPES:
            assert len(list((tmp_path / part / shape).iterdir())) == count
    assert len(set(images.values())) == len(images), "no image occurs twice"
    boxes = load_boxes(tmp_path)
    number = 2
    drawing = draw(number * len(SHAPES) + SHAPES.index("star"), seed=1, size=48)
    assert boxes[f"train/star/{number:05d}.png"] == drawing.box


def test_a_drawing_does_not_depend_on_earlier_ones() -> None:
    assert draw(11, seed=3).image.tobytes() == draw(11, seed=3).image.tobytes()
    assert draw(11, seed=3).image.tobytes() != draw(12, seed=3).image.tobytes()


@pytest.mark.parametrize("size", [32, 64, 224])
def test_the_box_is_tight(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws each image with and without the shape: the pixels that differ reach every edge of the box, and none is outside."""
    import tlcli.training.data.drawing.draw_shape as drawing

    paint = drawing.paint
    for index in range(3 * len(SHAPES)):
        with_shape = draw(index, seed=5, size=size)
        # The shape is the only thing that is painted with a shading.
        monkeypatch.setattr(drawing, "paint", lambda canvas, mask, colour, *shading: None if shading else paint(canvas, mask, colour))
        without = draw(index, seed=5, size=size)
        monkeypatch.setattr(drawing, "paint", paint)
        differs = (np.asarray(with_shape.image) != np.asarray(without.image)).any(-1)
        left, top, right, bottom = with_shape.box
        outside = differs.copy()
        outside[top:bottom, left:right] = False
        assert not outside.any()
        inside = differs[top:bottom, left:right]
        # A pixel that the shape barely touches may be unchanged, so the outermost two rows or columns are checked.
        for edge in (inside[:2], inside[-2:], inside[:, :2], inside[:, -2:]):
            assert edge.any()


def test_the_shape_is_inside_of_the_image_and_large_enough() -> None:
    for index in range(20 * len(SHAPES)):
        left, top, right, bottom = draw(index, seed=2).box
        assert 0 <= left < right <= 64
        assert 0 <= top < bottom <= 64
        assert min(right - left, bottom - top) >= 64 * 0.25
        assert max(right - left, bottom - top) <= 64 * 0.85


def outline_filling(index: int) -> float:
    """Return the share of its box that a shape covers: the pixels nearer to the shape's colour than to the background's."""
    drawing = draw(index, seed=9, size=128)
    pixels = np.asarray(drawing.image).astype(float)
    left, top, right, bottom = drawing.box
    ground = np.median(np.concatenate([pixels[:top].reshape(-1, 3), pixels[bottom:].reshape(-1, 3)]), axis=0)
    inside = pixels[top:bottom, left:right].reshape(-1, 3)
    colour = inside[np.linalg.norm(inside - ground, axis=1).argsort()[-len(inside) // 4 :]].mean(0)
    return float((np.linalg.norm(inside - colour, axis=1) < np.linalg.norm(inside - ground, axis=1)).mean())


def test_the_labels_match_the_shapes() -> None:
    """Compares the share of its box that each covers: a circle pi/4, a square from 1 (upright) to 1/2 (rotated), a star the least."""
    filled = {name: np.median([outline_filling(len(SHAPES) * turn + label) for turn in range(25)]) for label, name in enumerate(SHAPES)}
    assert filled["circle"] == pytest.approx(np.pi / 4, abs=0.04)
    assert 0.5 < filled["square"] < 1.0
    assert filled["ring"] < filled["circle"] - 0.15
    assert filled["star"] < filled["square"]
    assert filled["triangle"] < 0.6


def test_colour_does_not_reveal_the_class() -> None:
    """A nearest-mean classifier on the colours in the box has an accuracy near chance, 1 in 6."""
    count = 60 * len(SHAPES)
    drawings = [draw(index, seed=4) for index in range(count)]
    colours = np.stack([np.asarray(drawing.image.crop(drawing.box)).reshape(-1, 3).mean(0) for drawing in drawings])
    labels = np.array([drawing.label for drawing in drawings])
    half = count // 2
    means = np.stack([colours[:half][labels[:half] == label].mean(0) for label in range(len(SHAPES))])
    nearest = np.linalg.norm(colours[half:, None] - means, axis=-1).argmin(1)
    assert (nearest == labels[half:]).mean() < 0.35


def test_the_folders_name_depends_on_everything_that_determines_the_images(tmp_path: Path) -> None:
    folders = {
        shapes_folder(tmp_path, 0),
        shapes_folder(tmp_path, 1),
        shapes_folder(tmp_path, 0, COUNTS),
        shapes_folder(tmp_path, 0, size=96),
    }
    assert len(folders) == 4
    assert all(folder.parent == tmp_path and folder.name.startswith("shapes-") for folder in folders)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"a": 1}', '{"a": [1, 2]}'])
def test_invalid_files_of_boxes_are_rejected(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / BOXES_FILE).write_text(content)
    with pytest.raises(DatasetError, match=r"boxes\.json: not a file of bounding boxes \(.*\): create it with --dataset shapes"):
        load_boxes(tmp_path)
