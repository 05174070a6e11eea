"""The drawn data set: the same for a seed to the byte, with boxes that are true."""

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


def test_a_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("first", 7), ("again", 7), ("other", 8)):
        write_shapes(tmp_path / name, COUNTS, seed)
    assert files(tmp_path / "first") == files(tmp_path / "again")
    first, other = files(tmp_path / "first"), files(tmp_path / "other")
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)


def test_layout_and_boxes(tmp_path: Path) -> None:
    write_shapes(tmp_path, COUNTS, seed=1, size=48)
    images = files(tmp_path)
    assert json.loads(images.pop(BOXES_FILE)).keys() == images.keys() == load_boxes(tmp_path).keys()
    for part, count in COUNTS.items():
        assert {child.name for child in (tmp_path / part).iterdir()} == set(SHAPES)
        for shape in SHAPES:
            assert len(list((tmp_path / part / shape).iterdir())) == count
    assert len(set(images.values())) == len(images), "no image twice, so none in two parts"
    boxes = load_boxes(tmp_path)
    number = 2
    drawing = draw(number * len(SHAPES) + SHAPES.index("star"), seed=1, size=48)
    assert boxes[f"train/star/{number:05d}.png"] == drawing.box


def test_a_drawing_does_not_depend_on_those_before_it() -> None:
    assert draw(11, seed=3).image.tobytes() == draw(11, seed=3).image.tobytes()
    assert draw(11, seed=3).image.tobytes() != draw(12, seed=3).image.tobytes()


@pytest.mark.parametrize("size", [32, 64, 224])
def test_the_box_is_tight(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn once with the shape and once without: the pixels that differ reach every edge of the box and none beyond."""
    import tlcli.training.data.draw_shape as drawing

    paint = drawing._paint
    for index in range(3 * len(SHAPES)):
        with_shape = draw(index, seed=5, size=size)
        # The shape is the only thing that is painted with a shading.
        monkeypatch.setattr(drawing, "_paint", lambda canvas, mask, colour, *shading: None if shading else paint(canvas, mask, colour))
        without = draw(index, seed=5, size=size)
        monkeypatch.setattr(drawing, "_paint", paint)
        differs = (np.asarray(with_shape.image) != np.asarray(without.image)).any(-1)
        left, top, right, bottom = with_shape.box
        outside = differs.copy()
        outside[top:bottom, left:right] = False
        assert not outside.any()
        inside = differs[top:bottom, left:right]
        # A pixel that the shape barely touches may look the same: one of the outermost two columns or rows shows it.
        for edge in (inside[:2], inside[-2:], inside[:, :2], inside[:, -2:]):
            assert edge.any()


def test_the_shape_lies_within_and_is_large_enough_to_see() -> None:
    for index in range(20 * len(SHAPES)):
        left, top, right, bottom = draw(index, seed=2).box
        assert 0 <= left < right <= 64
        assert 0 <= top < bottom <= 64
        assert min(right - left, bottom - top) >= 64 * 0.25
        assert max(right - left, bottom - top) <= 64 * 0.85


def outline_filling(index: int) -> float:
    """The share of its box that a shape covers, measured on the image: pixels nearer to the shape's colour than to the ground's."""
    drawing = draw(index, seed=9, size=128)
    pixels = np.asarray(drawing.image).astype(float)
    left, top, right, bottom = drawing.box
    ground = np.median(np.concatenate([pixels[:top].reshape(-1, 3), pixels[bottom:].reshape(-1, 3)]), axis=0)
    inside = pixels[top:bottom, left:right].reshape(-1, 3)
    colour = inside[np.linalg.norm(inside - ground, axis=1).argsort()[-len(inside) // 4 :]].mean(0)
    return float((np.linalg.norm(inside - colour, axis=1) < np.linalg.norm(inside - ground, axis=1)).mean())


def test_the_classes_are_the_shapes_they_are_called() -> None:
    """By the share of the box that each covers: a circle pi/4; an upright to turned square 1 to 1/2; a star the least."""
    filled = {name: np.median([outline_filling(len(SHAPES) * turn + label) for turn in range(25)]) for label, name in enumerate(SHAPES)}
    assert filled["circle"] == pytest.approx(np.pi / 4, abs=0.04)
    assert 0.5 < filled["square"] < 1.0
    assert filled["ring"] < filled["circle"] - 0.15
    assert filled["star"] < filled["square"]
    assert filled["triangle"] < 0.6


def test_colour_does_not_give_the_class_away() -> None:
    """A nearest-mean classifier on what colour there is in the box stays near chance, 1 in 6."""
    count = 60 * len(SHAPES)
    drawings = [draw(index, seed=4) for index in range(count)]
    colours = np.stack([np.asarray(drawing.image.crop(drawing.box)).reshape(-1, 3).mean(0) for drawing in drawings])
    labels = np.array([drawing.label for drawing in drawings])
    half = count // 2
    means = np.stack([colours[:half][labels[:half] == label].mean(0) for label in range(len(SHAPES))])
    nearest = np.linalg.norm(colours[half:, None] - means, axis=-1).argmin(1)
    assert (nearest == labels[half:]).mean() < 0.35


def test_the_folder_is_named_by_all_that_decides_the_images(tmp_path: Path) -> None:
    folders = {
        shapes_folder(tmp_path, 0),
        shapes_folder(tmp_path, 1),
        shapes_folder(tmp_path, 0, COUNTS),
        shapes_folder(tmp_path, 0, size=96),
    }
    assert len(folders) == 4
    assert all(folder.parent == tmp_path and folder.name.startswith("shapes-") for folder in folders)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"a": 1}', '{"a": [1, 2]}'])
def test_boxes_that_are_not_ours_are_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / BOXES_FILE).write_text(content)
    with pytest.raises(DatasetError, match=r"boxes\.json: no boxes of drawn shapes \(.*\): draw them with --dataset shapes"):
        load_boxes(tmp_path)
