"""Export of a network with several labels per image, and the commands that run its file."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.helpers.training.tiny_training import config
from tlcli.cli.commands.evaluate import command as evaluate
from tlcli.cli.commands.predict import command as predict
from tlcli.contract.errors import SettingsError
from tlcli.contract.model.description import Description, Plain
from tlcli.contract.model.onnx_model import Model
from tlcli.exports import SmallerNumbers, export_run
from tlcli.exports.triton_config import triton_files
from tlcli.training import finetune
from tlcli.training.data.drawing.draw_scene import write_scenes
from tlcli.training.metrics.multi_label import MultiLabelScores
from tlcli.training.runs.load_run import Run, load_run

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    scenes = write_scenes(tmp_path_factory.mktemp("scenes"), {"train": 96, "val": 40, "test": 40}, size=32)
    return load_run(finetune(config(scenes, tmp_path_factory.mktemp("runs") / "run", mode="full", epochs=1)).path)


@pytest.fixture(scope="module")
def file(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_run(
        run, name="scenes", repository=tmp_path_factory.mktemp("models"), methods=["gradcam", "hirescam"], check_images=4
    ).path


@pytest.fixture(scope="module")
def model(file: Path) -> Model:
    return Model.open(file, device="cpu")


@pytest.fixture(scope="module")
def images(run: Run) -> np.ndarray:
    part = run.dataset().val
    return np.stack([run.network.config.preprocessing.apply(part.load(index)) for index in range(len(part))])


def test_scores_are_sigmoids_and_the_thresholds_are_those_of_the_run(run: Run, model: Model, images: np.ndarray) -> None:
    answer = model.run(images)
    np.testing.assert_allclose(answer.scores, torch.from_numpy(answer.logits).sigmoid(), atol=TOLERANCE)
    np.testing.assert_allclose(answer.logits, run.network.predict(images), atol=1e-3)
    assert isinstance(run.results.val, MultiLabelScores)
    assert model.description.task == "multi-label"
    assert model.description.thresholds == run.results.val.thresholds


def test_labels_of_the_file_are_those_of_the_runs_predictions(run: Run, model: Model, images: np.ndarray) -> None:
    rows = list(csv.DictReader((run.path / "predictions.csv").open()))
    for row, scores in zip(rows, model.run(images).scores, strict=True):
        assert set(filter(None, row["predicted"].split("|"))) == {run.classes[class_id] for class_id in model.description.assigned(scores)}


def test_maps_of_probabilities_have_the_sigmoids_gradient(model: Model, images: np.ndarray) -> None:
    """dp/dA = p (1 - p) dz/dA, which HiResCAM shows as a factor."""
    logits, probabilities = (model.run(images[:4], (0, 5), ["hirescam"], softmax=softmax) for softmax in (False, True))
    p = logits.scores[:, [0, 5], None, None]
    np.testing.assert_allclose(probabilities.maps["hirescam"], p * (1 - p) * logits.maps["hirescam"], atol=TOLERANCE)


def test_a_description_of_the_earlier_format_has_one_label_and_no_thresholds(model: Model) -> None:
    document = json.loads(model.description.to_json())
    earlier = Description.model_validate({key: value for key, value in document.items() if key not in ("task", "thresholds")})
    assert (earlier.task, earlier.thresholds) == ("single-label", ())
    assert earlier.assigned(np.ones(8, np.float32)) == []
    with pytest.raises(ValueError, match="0 thresholds for 8 labels of a multi-label model"):
        Description.model_validate({**document, "thresholds": []})


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"temperature": 2.0}, "--temperature 2.0"),
        ({"temperature": "fit"}, "--temperature fit"),
        ({"numbers": SmallerNumbers("int8")}, "--precision int8"),
        ({"numbers": SmallerNumbers("fp16")}, "--precision fp16"),
    ],
)
def test_what_would_change_the_scores_is_refused(run: Run, tmp_path: Path, options: dict[str, Any], flag: str) -> None:
    with pytest.raises(SettingsError, match=f"{flag} needs one label per image"):
        export_run(run, name="other", repository=tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_plain_file_that_explains_one_class_alone_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--classes top explains one label"):
        export_run(run, name="other", repository=tmp_path, methods=["gradcam"], plain=Plain(classes="top"))


def test_the_model_card_and_tritons_configuration_have_the_thresholds(run: Run, file: Path, model: Model) -> None:
    card = (file.parents[1] / "README.md").read_text()
    assert isinstance(run.results.test, MultiLabelScores)
    assert f"mean average precision (mAP) {run.results.test.mean_ap:.4f}" in card
    assert f"{run.results.test.classes[0].threshold:.4f}" in card
    assert "Calibration" not in card
    for text in triton_files(model.description).values():
        assert "multi-label" in text
        assert f"{model.description.thresholds[0]!r}" in text


def test_predict_shows_every_label_with_an_overlay_of_its_own(
    run: Run, file: Path, model: Model, images: np.ndarray, tmp_path: Path
) -> None:
    part = run.dataset().val
    counts = [len(model.description.assigned(scores)) for scores in model.run(images).scores]
    chosen = [int(np.argmax(counts)), int(np.argmin(counts))]
    paths = [str(Path(run.config.dataset).parent / part.names[index]) for index in chosen]
    args = [
        str(file),
        *paths,
        "--cam",
        "gradcam",
        "--output",
        str(tmp_path / "overlays"),
        "--json",
        "--quiet",
        "--npz",
        str(tmp_path / "a.npz"),
    ]
    result = CliRunner().invoke(predict, args, catch_exceptions=False)
    rows = json.loads(result.stdout)
    for path, index in zip(paths, chosen, strict=True):
        labels = [run.classes[class_id] for class_id in model.description.assigned(model.run(images[index : index + 1]).scores[0])]
        of_image = [row for row in rows if row["path"] == path]
        assert [row["label"] for row in of_image] == (labels or [None])
        assert len(of_image[0].get("overlays", [])) == len(labels)
    assert np.load(tmp_path / "a.npz")["maps"].shape[:2] == (2, max(counts[index] for index in chosen))


def test_evaluate_gives_the_figures_of_the_run(run: Run, file: Path, tmp_path: Path) -> None:
    args = [str(file), run.config.dataset, "--output", str(tmp_path / "out"), "--quiet"]
    result = CliRunner().invoke(evaluate, args, catch_exceptions=False)
    assert result.exit_code == 0
    scores = MultiLabelScores.model_validate(json.loads((tmp_path / "out/summary.json").read_text())["scores"])
    assert isinstance(run.results.test, MultiLabelScores)
    assert scores.mean_ap == pytest.approx(run.results.test.mean_ap, abs=1e-4)
    assert scores.exact_match == run.results.test.exact_match
    assert scores.thresholds == run.results.test.thresholds
