"""`tlcli.finetune` and `tlcli.export`: a run, its figures, and the model of it, with the command line's own numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tlcli
from tests.helpers.training.tiny_training import BACKBONE, put_colours
from tlcli.contract.errors import DatasetError, NotFoundError, SettingsError
from tlcli.training import load_run

SMALL = {"backbone": BACKBONE, "weights": "none", "image_size": 32, "epochs": 3, "batch_size": 8, "workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_colours(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tlcli.Run:
    return tlcli.finetune(data, output=tmp_path_factory.mktemp("runs") / "colours", quiet=True, **SMALL)


@pytest.fixture(scope="module")
def model(run: tlcli.Run, tmp_path_factory: pytest.TempPathFactory) -> tlcli.Model:
    return tlcli.export(run, output=tmp_path_factory.mktemp("models"), cam=["gradcam", "eigencam"], device="cpu", quiet=True)


def test_a_run_has_its_folder_its_figures_and_its_curves(run: tlcli.Run) -> None:
    assert run.metrics == load_run(run.path).metrics
    assert {"val_top1", "test_top1"} <= run.metrics.keys()
    assert run.report.is_file()
    assert run.curves.width > 100
    assert repr(run).startswith(f"Run('{run.path}', val_top1={run.metrics['val_top1']:.4f}")
    assert "<img src='data:image/png;base64," in run._repr_html_()
    assert f"{run.metrics['val_top1']:.4f}" in run._repr_html_()


def test_progress_is_shown_unless_quiet(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (True, False):
        tlcli.finetune(str(data), quiet=quiet, output=tmp_path / str(quiet), limit=3, **SMALL)
        said = capsys.readouterr().err
        assert "warning: --weights none" in said
        assert ("epoch" in said.lower()) is not quiet


def test_the_exported_model_is_loaded_and_sees_what_the_run_saw(run: tlcli.Run, model: tlcli.Model) -> None:
    assert model.name == "colours"
    assert model.path.parts[-3:] == ("colours", "1", "model.onnx")
    assert model.labels == ("blue", "green", "red")
    assert model.cams == ("gradcam", "eigencam")
    test = load_run(run.path).dataset().test
    assert test is not None
    answers = model.predict([test.load(index) for index in range(len(test))])
    right = np.mean([answer.class_id == label for answer, label in zip(answers, test.labels, strict=True)])
    assert right == pytest.approx(run.metrics["test_top1"])


@pytest.mark.slow
def test_a_run_is_exported_by_its_path_and_a_backbone_by_its_name(run: tlcli.Run, tmp_path: Path) -> None:
    again = tlcli.export(str(run.path), output=tmp_path, name="again", cam=None, quiet=True)
    assert (again.name, again.cams) == ("again", ())
    published = tlcli.export(BACKBONE, output=tmp_path, cam="gradcam", weights="none", image_size=32, quiet=True)
    assert published.name == BACKBONE
    assert len(published.labels) == 1000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "epoch: no such setting: did you mean epochs"),
        ({"lr": -1}, "^lr: Input should be greater than 0"),
        ({"head": "deep"}, "^head: unknown head 'deep'"),
        ({"backbone": "resnet1"}, "unknown backbone 'resnet1'"),
    ],
)
def test_a_wrong_setting_is_named(data: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        tlcli.finetune(data, **{"weights": "none", "quiet": True, **settings})  # type: ignore[arg-type]


def test_what_cannot_be_trained_on_or_exported_is_refused(run: tlcli.Run, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nosuch"):
        tlcli.finetune(tmp_path / "nosuch")
    with pytest.raises(NotFoundError, match="no such folder"):
        tlcli.export(tmp_path / "nosuch")
    with pytest.raises(SettingsError, match="weights, labels: determined by a run"):
        tlcli.export(run, labels=["a"], weights="none")
    with pytest.raises(SettingsError, match="temperature 'fit' needs the validation split of a run"):
        tlcli.export(BACKBONE, temperature="fit", weights="none")
    with pytest.raises(SettingsError, match="unknown backbone 'resnet1'"):
        tlcli.export("resnet1", output=tmp_path)
    assert not list(tmp_path.iterdir())
