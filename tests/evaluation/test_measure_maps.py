"""For a model that only uses one quarter, the map of that quarter is best by every metric, with values computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.evaluation import corner_model
from tlcli.contract.errors import DatasetError, RequestError
from tlcli.contract.model.onnx_model import Model
from tlcli.evaluation.cam_dataset import open_images
from tlcli.evaluation.cam_metrics import COLUMNS, METRICS
from tlcli.evaluation.faithfulness import area
from tlcli.evaluation.measure_maps import Measurement, Settings, choose_methods, choose_metrics, measure, probes_per_map

GOOD, BAD = "gradcam", "layercam"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.open(corner_model.save(tmp_path_factory.mktemp("models") / "model.onnx"), "cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corner_model.put_images(tmp_path_factory.mktemp("data") / "squares", count=10)


@pytest.fixture(scope="module")
def found(model: Model, data: Path) -> Measurement:
    """Measure the maps of `bright` for every image."""
    settings = Settings((GOOD, BAD), steps=8, class_ids={"dark": 1, "bright": 1}, batch_size=5)
    return measure(model, open_images(str(data), 100, seed=0), settings)


def bright(found: Measurement, method: str, column: str) -> np.ndarray:  # type: ignore[type-arg]
    return np.array([image.values[method][column] for image in found.images if image.class_name == "bright"])


def test_the_quarter_is_best_and_a_random_map_between(found: Measurement) -> None:
    for column in COLUMNS:
        good, random, bad = (bright(found, method, column.name).mean() for method in (GOOD, "random", BAD))
        if column.name == "increase":
            assert good == random == bad == 0, "the rest of the image does not speak against the class, so nothing is won without it"
        elif column.higher_is_better:
            assert good > random >= bad, column.name
        else:
            assert good < random <= bad, column.name


def test_figures_are_those_on_paper(found: Measurement, data: Path) -> None:
    """Enlarged, 2 x 2 of 4 x 4 cells are above 0 on 20 x 20 of 32 x 32 pixels: all of their quarter, and a rim of 4 around it.

    So of eight steps of 128 pixels, four take the good map's quarter away, or put it in, and three of the bad map's take
    nothing of it but a corner of 4 x 4.
    """
    images = {one.name: np.asarray(Image.open(data / one.name)) for one in found.images}
    nothing = corner_model.probability(np.zeros((32, 32, 3)))
    for one in found.images:
        assert one.probability == pytest.approx(corner_model.probability(images[one.name]), abs=1e-5)
    whole = np.mean([one.probability for one in found.images])
    np.testing.assert_allclose(found.curves["deletion"][GOOD][4:], nothing, atol=1e-6)
    np.testing.assert_allclose(found.curves["insertion"][GOOD][4:], whole, atol=1e-6)
    corner_gone = []
    for image in images.values():
        changed = image.copy()
        changed[12:, 12:] = 0
        corner_gone.append(corner_model.probability(changed))
    assert np.mean(corner_gone) - 1e-6 <= found.curves["deletion"][BAD][3] <= whole
    for one in (one for one in found.images if one.class_name == "bright"):
        assert one.values[BAD]["average_drop"] == pytest.approx(1 - nothing / one.probability, abs=0.02)
        assert one.values[GOOD]["pointing"] == 1
        assert one.values[BAD]["pointing"] == 0
        # Along each axis 12 pixels of 1, then 15/16, 13/16, ..., 1/16, of which the first four are inside: 15 of 16 in total.
        assert one.values[GOOD]["energy"] == pytest.approx((15 / 16) ** 2, abs=1e-6)


def test_curves_begin_and_end_alike(found: Measurement) -> None:
    """With nothing or everything deleted, the map makes no difference."""
    probabilities = np.mean([image.probability for image in found.images])
    for method in found.settings.names:
        deletion, insertion = found.curves["deletion"][method], found.curves["insertion"][method]
        assert len(deletion) == len(insertion) == 9
        assert deletion[0] == pytest.approx(probabilities, abs=1e-6)
        assert insertion[-1] == pytest.approx(probabilities, abs=1e-6)
        assert deletion[-1] == pytest.approx(corner_model.probability(np.zeros((32, 32, 3))), abs=1e-6)
        assert found.figure(method, "deletion").mean == pytest.approx(area(deletion), abs=1e-9)  # type: ignore[union-attr]


def test_standard_errors(found: Measurement) -> None:
    values = [image.values[GOOD]["insertion"] for image in found.images]
    figure = found.figure(GOOD, "insertion")
    assert figure is not None
    assert (figure.count, figure.mean) == (20, pytest.approx(np.mean(values)))
    assert figure.error == pytest.approx(np.sqrt(np.sum((np.array(values) - figure.mean) ** 2) / 19 / 20))


def test_the_same_again_and_in_other_batches(model: Model, data: Path, found: Measurement) -> None:
    settings = Settings((GOOD, BAD), steps=8, class_ids={"dark": 1, "bright": 1}, batch_size=64)
    again = measure(model, open_images(str(data), 100, seed=0), settings)
    for one, other in zip(found.images, again.images, strict=True):
        assert one.name == other.name
        for method in settings.names:
            assert one.values[method] == pytest.approx(other.values[method], abs=1e-6)


def test_predicted_explains_the_models_first(model: Model, data: Path) -> None:
    found = measure(model, open_images(str(data), 100, seed=0), Settings((GOOD,), metrics=("average_drop",)))
    assert all(image.class_id == int(image.class_name == "bright") for image in found.images)


def test_the_model_is_asked_as_often_as_is_said(model: Model, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    run = Model.run

    def counting(self: Model, images: np.ndarray, *rest: object, **named: object):  # type: ignore[no-untyped-def,type-arg]
        nonlocal asked
        assert len(images) <= 6, "no more at a time than the batch size"
        asked += len(images)
        return run(self, images, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "run", counting)
    for metrics in (METRICS, ("road",), ("increase", "energy")):
        settings, asked = Settings((GOOD, BAD), metrics=metrics, steps=3, batch_size=6), 0
        measure(model, open_images(str(data), 2, seed=0), settings)
        assert asked - 2 == 2 * 4 * probes_per_map(settings)  # one run per image computes the maps of the two images


def test_boxes_that_the_crop_leaves_out_are_counted(model: Model, tmp_path: Path) -> None:
    boxes = {"a/0.png": [0, 0, 16, 32], "a/1.png": [0, 0, 20, 32], "b/0.png": [20, 4, 30, 9]}
    for name in (*boxes, "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 32), "white").save(tmp_path / name)
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    found = measure(model, open_images(str(tmp_path), 9, seed=0), Settings((GOOD,), metrics=("pointing", "energy", "increase")))
    assert (len(found.images), found.without_region, found.outside) == (4, 1, 1)
    energy, growth = found.figure(GOOD, "energy"), found.figure(GOOD, "increase")
    assert energy is not None
    assert growth is not None
    assert (energy.count, growth.count) == (2, 4)
    (tmp_path / "boxes.json").write_text(json.dumps({"elsewhere/a/0.png": [0, 0, 1, 1]}))
    with pytest.raises(DatasetError, match="none of the 4 images has a box that the network sees"):
        measure(model, open_images(str(tmp_path), 9, seed=0), Settings((GOOD,), metrics=("pointing",)))


def test_methods_are_chosen_by_name_by_method_or_all(model: Model) -> None:
    assert choose_methods(model, None) == (GOOD, BAD)
    assert choose_methods(model, ["all"]) == (GOOD, BAD, "ablationcam")
    assert choose_methods(model, ["ablationcam", GOOD, GOOD]) == ("ablationcam", GOOD)
    with pytest.raises(RequestError, match="has no map method 'cam'; it has: gradcam, layercam, ablationcam"):
        choose_methods(model, ["cam"])


def test_a_method_stands_for_its_maps_of_every_layer(tmp_path: Path) -> None:
    from tlcli.contract.model.description import MapOutput

    opened = Model.open(corner_model.save(tmp_path / "model.onnx"), "cpu")
    maps = tuple(MapOutput(name=f"gradcam@{layer}", method="gradcam", layer=layer, height=4, width=4) for layer in ("a", "b"))
    opened.description = opened.description.model_copy(update={"maps": maps})
    assert choose_methods(opened, ["gradcam"]) == ("gradcam@a", "gradcam@b")
    assert choose_methods(opened, ["gradcam@b"]) == ("gradcam@b",)
    fused = MapOutput(name="gradcam", method="gradcam", layer="a+b", height=4, width=4)
    opened.description = opened.description.model_copy(update={"maps": (*maps, fused)})
    assert choose_methods(opened, ["gradcam"]) == ("gradcam",)
    opened.description = opened.description.model_copy(update={"maps": ()})
    with pytest.raises(RequestError, match="has no maps to measure"):
        choose_methods(opened, None)


def test_metrics_are_chosen_by_what_the_data_allows(data: Path, tmp_path: Path) -> None:
    images = open_images(str(data), 4, seed=0)
    bare = open_images(str(corner_model.put_images(tmp_path / "bare", boxes=False)), 4, seed=0)
    assert choose_metrics(images, None) == METRICS
    assert choose_metrics(bare, None) == METRICS[:-2]
    assert choose_metrics(images, ["energy", "road"]) == ("road", "energy")
    with pytest.raises(DatasetError, match="--metrics pointing needs boxes or masks of the objects"):
        choose_metrics(bare, ["pointing"])
    with pytest.raises(RequestError, match="unknown metric 'auc'"):
        choose_metrics(images, ["auc"])
