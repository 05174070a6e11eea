"""Fine-tuning and export in Python: `tlcli.export(tlcli.finetune(folder))`. Needs PyTorch (`pip install 'tlcli[train]'`)."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image
from pydantic import ValidationError

from tlcli.answer import thumbnail
from tlcli.contract.errors import SettingsError
from tlcli.contract.model.repository_layout import is_run
from tlcli.exported_model import Cam, Model, cam_names, html_table, load
from tlcli.notebook import NotebookConsole, in_notebook
from tlcli.setting_errors import first_problem

if TYPE_CHECKING:
    from tlcli.cli.console import Console
    from tlcli.training.settings.config import FinetuneConfig

Setting = Any
"""Value of a setting of `tlcli.training.FinetuneConfig`."""


@dataclass(frozen=True, repr=False)
class Run:
    """A finished fine-tuning run. A notebook shows it as its figures and its curves.

    path: folder of the run: checkpoint, settings, figures, `report.html`.
    metrics: final figures by name: `val_top1`, `val_loss`, and the same of the test split if there is one.
    """

    path: Path
    metrics: dict[str, float]

    @property
    def report(self) -> Path:
        """The report of the run, an HTML file."""
        return self.path / "report.html"

    @property
    def curves(self) -> Image.Image:
        """The learning curves.

        Raises:
            FileNotFoundError: the run's folder is gone.
        """
        return Image.open(self.path / "curves.png")

    def __repr__(self) -> str:
        figures = "".join(f", {name}={value:.4f}" for name, value in self.metrics.items())
        return f"Run({str(self.path)!r}{figures})"

    def _repr_html_(self) -> str:
        rows = {name: f"{value:.4f}" for name, value in self.metrics.items()} | {"run": str(self.path)}
        curves = thumbnail(self.curves, 480) if (self.path / "curves.png").is_file() else ""
        link = f"<div>report: {html.escape(str(self.report))}</div>"
        return f"<div style='display:flex;gap:12px;align-items:flex-start'>{curves}<div>{html_table(rows)}{link}</div></div>"


def finetune(folder: str | Path, backbone: str = "resnet18", *, quiet: bool = False, **settings: Setting) -> Run:
    """Fine-tune a pretrained backbone on images, and write a run folder.

    Args:
        folder: a folder with one folder of images per class, with or without `train`, `val` and `test` above them; or the name of a
            known data set.
        backbone: name of a timm model; `tlcli backbones` lists them.
        quiet: show no progress; warnings are always shown.
        settings: those of `tlcli finetune`, such as `mode="full"`, `epochs=10`, `weights="FILE"`, `output="runs/pets"`; see
            `tlcli.training.FinetuneConfig`.

    Raises:
        SettingsError: an unknown setting, a value that it cannot have, or settings that contradict each other.
        DatasetError: images that cannot be trained on.
        WeightsError, HubError: weights that do not fit or cannot be downloaded.
        DeviceError: the requested device is not available.
    """
    config = _config(dataset=str(folder), backbone=backbone, **settings)
    from tlcli.cli.finetune_settings import check_dataset
    from tlcli.cli.interruption import note_how_to_resume
    from tlcli.training import fine_tuning
    from tlcli.training.engine.callbacks import RunFolderCallback
    from tlcli.training.runs.reproduce_command import resume_command

    check_dataset(config)
    console = _console(quiet)
    folders: list[Path] = []  # the run's, once it can be resumed
    with note_how_to_resume(lambda _: f"{resume_command(folders[0])} resumes it" if folders else None):
        result = fine_tuning.finetune(config, progress=console.progress, log=console.say, callbacks=[RunFolderCallback(folders)])
    return Run(result.path, result.metrics)


def export(
    source: Run | str | Path,
    *,
    output: str | Path = "models",
    name: str | None = None,
    cam: Cam = "all",
    cam_layer: str | Sequence[str] = (),
    dynamic_size: bool = False,
    temperature: float | Literal["fit"] = 1.0,
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    labels: Sequence[str] | None = None,
    calibration: Sequence[str | Path] = (),
    device: str = "auto",
    quiet: bool = False,
    **network: Setting,
) -> Model:
    """Export a run, or a backbone with the classifier it was published with, to one ONNX file, and load it.

    The file is compared with PyTorch on images, and kept only if it agrees.

    Args:
        source: a run, a run's folder, or the name of a backbone.
        output: model repository; the file becomes `output/name/version/model.onnx`.
        name: name of the model; None for the run's or the backbone's.
        cam: map methods for the graph; `"all"` for those that the network allows; None for no maps.
        cam_layer: layers to explain, by module name; empty for the last one with a spatial extent.
        dynamic_size: accept images of any height and width.
        temperature: divide the logits by it; `"fit"` finds it on the run's validation split.
        precision: `fp32`, `fp16` for GPUs, or `int8` for CPUs.
        labels: for a backbone: labels of the classes; None for ImageNet's where there are 1000.
        calibration: for a backbone in int8: images to calibrate on, files or folders.
        device: where the loaded model runs: `auto`, `cpu` or `cuda`.
        quiet: show no progress; warnings are always shown.
        network: for a backbone: `weights`, `image_size`, `model_kwargs`, `mean`, `std`, ... as of `tlcli.finetune`.

    Raises:
        NotFoundError: no such run, or an unfinished one.
        SettingsError: an unknown backbone, or a setting that does not apply.
        ExportError: a network whose graph cannot be written.
        ParityError: the file does not agree with PyTorch.
    """
    from tlcli.cli.commands.export import model_name, report
    from tlcli.exports import SmallerNumbers, export_backbone, export_run
    from tlcli.training.runs.load_run import load_run

    console = _console(quiet)
    names = cam_names(cam)
    common: dict[str, Any] = {
        "repository": Path(output),
        "methods": None if names == ("all",) else names,
        "layers": ((cam_layer,) if isinstance(cam_layer, str) else tuple(cam_layer)) or None,
        "dynamic_size": dynamic_size,
        "temperature": temperature,
        "numbers": None if precision == "fp32" else SmallerNumbers(precision),
        "say": console.say,
    }
    run = _run_path(source)
    if run is not None:
        _refuse("a run", {**network, "labels": labels, "calibration": calibration})
        loaded = load_run(run)
        name = name or loaded.config.name or model_name(run.resolve().name)
        exported = export_run(loaded, name=name, progress=console.progress, **common)
    else:
        if temperature == "fit":
            raise SettingsError("temperature 'fit': needs the validation split of a run; use a number for a backbone")
        config = _config(backbone=str(source), **network)
        paths = [Path(path) for path in calibration]
        exported = export_backbone(config, name=name or model_name(str(source)), labels=labels, calibration_paths=paths, **common)
    report(exported, console)
    return load(exported.path, device)


def _run_path(source: Run | str | Path) -> Path | None:
    """Return the run's folder; None for the name of a backbone."""
    if isinstance(source, Run):
        return source.path
    path = Path(source)
    return path if isinstance(source, Path) or path.exists() or is_run(Path("runs") / path) or len(path.parts) > 1 else None


def _refuse(what: str, arguments: dict[str, object]) -> None:
    given = [name for name, value in arguments.items() if value not in (None, ())]
    if given:
        raise SettingsError(f"{', '.join(given)}: {what} already determines these; they apply to a backbone")


def _config(**settings: Setting) -> FinetuneConfig:
    """Return the settings, checked.

    Raises:
        SettingsError: an unknown setting, or a value that it cannot have.
    """
    from tlcli.training.settings.config import FinetuneConfig

    try:
        return FinetuneConfig.of(**{name: value for name, value in settings.items() if value is not None})
    except ValidationError as error:
        name, problem = first_problem(error, FinetuneConfig.model_fields)
        raise SettingsError(f"{name or 'the settings'}: {problem}") from error


def _console(quiet: bool) -> Console:
    from tlcli.cli.console import Console

    return NotebookConsole() if in_notebook() and not quiet else Console(quiet)
