"""Summary of a finished run, written by any version of tlcli. Reading it needs neither the network nor PyTorch.

Unknown fields are ignored, and missing fields are None or empty. In contrast, `load_run` reads the entire run and rejects files with
unknown fields.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tlcli.contract.errors import NotFoundError, SettingsError
from tlcli.contract.files.display_name import from_csv_cell
from tlcli.contract.files.earlier_names import IMAGES_FIELD
from tlcli.contract.model.description import Task
from tlcli.contract.model.repository_layout import not_a_run
from tlcli.training.metrics.calibration import Calibration
from tlcli.training.metrics.multi_label import MultiLabelScores
from tlcli.training.metrics.scores import ClassScores, Results, Scores
from tlcli.training.runs.reproduce_command import resume_command
from tlcli.training.settings.run_file_names import CONFIG, METRICS, PREDICTIONS, RESULTS

Model = TypeVar("Model", bound=BaseModel)

_PARTS = ("val", "test")


class AnyClassScores(ClassScores):
    """Metrics of one class, written by any version."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    precision: float | None = None
    recall: float | None = None
    f1: float | None = None


class AnyScores(Scores):
    """Metrics of a part, written by any version.

    loss: mean cross-entropy in nats; None if it is missing or was NaN.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    top5: float | None = None
    loss: float | None = None  # type: ignore[assignment]  # widened on purpose: another version may lack it
    macro_f1: float | None = None  # type: ignore[assignment]
    calibration: Calibration | None = None  # type: ignore[assignment]
    classes: tuple[AnyClassScores, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()

    @property
    def right(self) -> int:
        """Number of correct predictions."""
        return round(self.top1 * self.count)

    @property
    def ece(self) -> float | None:
        """Expected calibration error in [0, 1]; None if it was not recorded."""
        return None if self.calibration is None else self.calibration.ece


class AnyResults(Results):
    """Content of `results.json`, written by any version."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    best_stage: str | None = None  # type: ignore[assignment]  # another version may have other stages
    stopped: str | None = None
    val: AnyScores | MultiLabelScores
    test: AnyScores | MultiLabelScores | None = None
    seconds: dict[str, float] = Field(default_factory=dict)
    images: dict[str, int] = Field(default_factory=dict, validation_alias=IMAGES_FIELD)
    left_out: int = 0


class AnyConfig(BaseModel):
    """Content of `config.json`, written by any version; see `tlcli.training.runs.run_folder.RunConfig`."""

    model_config = ConfigDict(frozen=True)

    created: str = ""
    asked: dict[str, Any]
    network: dict[str, Any] = {}
    plan: dict[str, Any] = {}
    classes: tuple[str, ...] = ()
    device: str = ""
    weights_fingerprint: str = ""
    dataset_fingerprint: str = ""
    versions: dict[str, str] = {}


class Epoch(BaseModel):
    """Metrics of one epoch: a row of `metrics.csv`; see `tlcli.training.metrics.scores.EpochRow`."""

    model_config = ConfigDict(frozen=True)

    stage: str
    epoch: int
    train_loss: float
    train_top1: float = math.nan
    val_loss: float
    val_top1: float = math.nan
    val_mean_ap: float | None = None


class Prediction(BaseModel):
    """Prediction for a validation image: a row of `predictions.csv`.

    name: image name. label: true class. predicted: predicted class. score: score of the predicted class. With several labels per image,
    `label` and `predicted` are the classes separated by vertical bars, and there is no score.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    label: str
    predicted: str
    score: float = math.nan


@dataclass(frozen=True)
class RunSummary:
    """Summary of a finished run.

    epochs, predictions: content of the CSV files; empty if the folder does not contain the file.
    """

    path: Path
    config: AnyConfig
    results: AnyResults
    epochs: tuple[Epoch, ...]
    predictions: tuple[Prediction, ...]

    @property
    def parts(self) -> dict[str, AnyScores]:
        """Metrics by part: `val` and, if there is a test part, `test`; empty with several labels per image."""
        return {name: part for name in _PARTS if isinstance(part := getattr(self.results, name), AnyScores)}

    @property
    def multi_label_parts(self) -> dict[str, MultiLabelScores]:
        """Metrics by part of a run with several labels per image; empty for other runs."""
        return {name: part for name in _PARTS if isinstance(part := getattr(self.results, name), MultiLabelScores)}

    @property
    def task(self) -> Task:
        """`multi-label` if images have several labels."""
        return "multi-label" if self.multi_label_parts else "single-label"

    @property
    def settings(self) -> dict[str, Any]:
        """Settings by name. Settings that were not given have their resolved values.

        If the run had a stage that trains all layers, these are the values of that stage.
        """
        settings = {name: self._resolved(name) if value is None else value for name, value in self.config.asked.items()}
        if settings.get("from_run"):  # the default of `weights` has no effect
            settings["weights"] = None
        return settings

    @property
    def best_stage(self) -> str | None:
        """Stage of the selected epoch, `head` or `full`; None if it was not recorded."""
        stages = {epoch.epoch: epoch.stage for epoch in self.epochs}
        return self.results.best_stage or stages.get(self.results.best_epoch)

    @property
    def seconds(self) -> float:
        """Duration of the entire run in seconds."""
        return sum(self.results.seconds.values())

    def _resolved(self, name: str) -> Any:
        plan, preprocessing = self.config.plan, self.config.network.get("preprocessing") or {}
        stage = "full_" if plan.get("full_epochs") else "head_"
        known = {
            **preprocessing,
            **(plan.get("augmentation") or {}),
            **plan,
            **{key.removeprefix(stage): value for key, value in plan.items() if key.startswith(stage)},
            "epochs": _sum(plan, "head_epochs", "full_epochs"),
            "image_size": preprocessing.get("height"),
            "num_classes": len(self.config.classes) or None,
        }
        return known.get(name)


def _sum(plan: Mapping[str, Any], *names: str) -> int | None:
    values = [plan[name] for name in names if isinstance(plan.get(name), int)]
    return sum(values) if values else None


def require_finished(path: Path, *names: str) -> None:
    """Check that a folder is a finished run.

    Args:
        path: run folder.
        names: files that the folder must contain.

    Raises:
        NotFoundError: the folder does not exist, is not a run folder, or lacks one of the files.
    """
    if problem := not_a_run(path):
        raise NotFoundError(problem)
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        way_out = "run `tlcli finetune` again" if CONFIG in missing else f"{resume_command(path)} resumes it"
        raise NotFoundError(f"{path}: no finished run ({', '.join(missing)} missing): {way_out}")


def read_summary(path: str | Path) -> RunSummary:
    """Read the summary of a run folder.

    Raises:
        NotFoundError: the folder does not exist or is not a finished run.
        SettingsError: a file in the folder is damaged or was not written by tlcli.
    """
    path = Path(path)
    require_finished(path, CONFIG, RESULTS)
    return RunSummary(
        path=path,
        config=read_json(path / CONFIG, AnyConfig),
        results=read_json(path / RESULTS, AnyResults),
        epochs=_read_csv(path / METRICS, Epoch),
        predictions=_read_csv(path / PREDICTIONS, Prediction),
    )


def read_json(path: Path, model: type[Model]) -> Model:
    """Read a JSON file of a run folder and validate it as `model`.

    Raises:
        SettingsError: the file is damaged or was not written by tlcli.
        OSError: the file cannot be read.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise _unreadable(path, error) from error


def _read_csv(path: Path, model: type[Model]) -> tuple[Model, ...]:
    if not path.is_file():
        return ()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return tuple(model.model_validate({key: _plain(value) for key, value in row.items()}) for row in csv.DictReader(file))
    except (ValidationError, csv.Error, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _plain(value: Any) -> Any:
    return from_csv_cell(value) if isinstance(value, str) else value


def _unreadable(path: Path, error: Exception) -> SettingsError:
    problem = str(error)
    if isinstance(error, ValidationError):
        details = error.errors()[:3]
        problem = "; ".join(": ".join(filter(None, (".".join(map(str, detail["loc"])), detail["msg"]))) for detail in details)
    return SettingsError(f"{path}: cannot be read: {problem}: damaged, or not written by tlcli: start a new run")
