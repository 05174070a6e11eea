"""Python API for fine-tuning and export: `tlcli.export(tlcli.finetune(folder))`. It requires PyTorch (`pip install 'tlcli[train]'`)."""

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
    """A finished fine-tuning run. Notebooks display its metrics and learning curves.

    path: run folder with the checkpoint, settings, metrics and `report.html`.
    metrics: final metrics by name: `val_top1` and `val_loss`, and the same metrics of the test split if there is one.
    """

    path: Path
    metrics: dict[str, float]

    @property
    def report(self) -> Path:
        """Path of the run's HTML report."""
        return self.path / "report.html"

    @property
    def curves(self) -> Image.Image:
        """Plot of the learning curves.

        Raises:
            FileNotFoundError: the run folder no longer exists.
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


def finetune(folder: str | Path, backbone: str | None = None, *, quiet: bool = False, **settings: Setting) -> Run:
    """Fine-tune a pretrained backbone on images and write a run folder.

    Args:
        folder: folder with one subfolder of images per class, optionally grouped into `train`, `val` and `test` folders; a label file,
            such as `labels.csv`; or the name of a known data set.
        backbone: name of a timm model; `tlcli backbones` lists them. None for `resnet18`, or for the network of `from_run`.
        quiet: hide progress; warnings are always shown.
        settings: settings of `tlcli finetune`, such as `mode="full"`, `epochs=10`, `weights="FILE"`, `output="runs/pets"`, or
            `from_run="runs/pets"` to start from an earlier run; see `tlcli.training.FinetuneConfig`.

    Returns:
        The finished run.

    Raises:
        SettingsError: a setting is unknown or has an invalid value, or settings contradict each other.
        DatasetError: the images cannot be used for training.
        WeightsError, HubError: the weights do not fit the backbone or cannot be downloaded.
        DeviceError: the requested device is not available.
    """
    if backbone is None and settings.get("from_run") is None:
        backbone = "resnet18"
    config = _config(dataset=str(folder), backbone=backbone, **settings)
    from tlcli.cli.finetune_settings import check_dataset
    from tlcli.cli.interruption import note_how_to_resume
    from tlcli.training import fine_tuning
    from tlcli.training.engine.callbacks import RunFolderCallback
    from tlcli.training.runs.reproduce_command import resume_command

    check_dataset(config)
    console = _console(quiet)
    folders: list[Path] = []  # holds the run folder once the run can be resumed
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
    plain: bool = False,
    classes: Literal["input", "top"] | None = None,
    static_batch: int | None = None,
    static_classes: int | None = None,
    temperature: float | Literal["fit"] = 1.0,
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    labels: Sequence[str] | None = None,
    calibration: Sequence[str | Path] = (),
    device: str = "auto",
    quiet: bool = False,
    **network: Setting,
) -> Model:
    """Export a run, or a backbone with its published classifier, to one ONNX file and load it.

    The file's outputs are compared with PyTorch's on images, and the file is kept only if they agree.

    Args:
        source: a run, the path of a run folder, or the name of a backbone.
        output: model repository; the file is written to `output/name/version/model.onnx`.
        name: name of the model; None for the name of the run or backbone, with `-plain` appended for a plain graph.
        cam: map methods to include in the graph; `"all"` for every method that the network supports; None for no maps.
        cam_layer: layers to explain, by module name; empty for the last layer with a spatial extent.
        dynamic_size: accept images of any height and width.
        plain: write a plain graph, without branches, loops and optional inputs, for other runtimes. It always computes all maps in `cam`.
        classes: classes that a plain graph explains: `"input"` for those in its input `targets` (the default), `"top"` for the first class.
        static_batch: number of images per run of a plain graph; None for any number.
        static_classes: number of explained classes per image of a plain graph; None for any number, or one with `static_batch`.
        temperature: divisor of the logits; `"fit"` fits it on the run's validation split.
        precision: `fp32`, `fp16` for GPUs, or `int8` for CPUs.
        labels: class labels, for a backbone only; None for the ImageNet labels if there are 1000 classes.
        calibration: calibration images as files or folders, for a backbone in int8 only.
        device: device that the loaded model runs on: `auto`, `cpu` or `cuda`.
        quiet: hide progress; warnings are always shown.
        network: settings for a backbone: `weights`, `image_size`, `model_kwargs`, `mean`, `std`, ... as in `tlcli.finetune`.

    Returns:
        The exported model, loaded.

    Raises:
        NotFoundError: the run does not exist or is not finished.
        SettingsError: the backbone is unknown, or a setting does not apply.
        ExportError: the network's graph cannot be written.
        ParityError: the file's outputs do not agree with PyTorch's.
    """
    from tlcli.cli.commands.export import default_name, model_name, report
    from tlcli.exports import SmallerNumbers, export_backbone, export_run
    from tlcli.exports.plain_settings import new_plain
    from tlcli.training.runs.load_run import load_run

    console = _console(quiet)
    names = cam_names(cam)
    methods = None if names == ("all",) else names
    form = new_plain(methods, classes, static_batch, static_classes) if plain else None
    if not plain:
        _refuse_without_plain({"classes": classes, "static_batch": static_batch, "static_classes": static_classes})
    common: dict[str, Any] = {
        "repository": Path(output),
        "methods": methods,
        "layers": ((cam_layer,) if isinstance(cam_layer, str) else tuple(cam_layer)) or None,
        "dynamic_size": dynamic_size,
        "temperature": temperature,
        "numbers": None if precision == "fp32" else SmallerNumbers(precision),
        "plain": form,
        "say": console.say,
    }
    run = _run_path(source)
    if run is not None:
        _refuse("a run", {**network, "labels": labels, "calibration": calibration})
        loaded = load_run(run)
        name = name or default_name(loaded.config.name or model_name(run.resolve().name), form)
        exported = export_run(loaded, name=name, progress=console.progress, **common)
    else:
        if temperature == "fit":
            raise SettingsError("temperature 'fit' needs the validation split of a run: use a number for a backbone")
        config = _config(backbone=str(source), **network)
        paths = [Path(path) for path in calibration]
        exported = export_backbone(
            config, name=name or default_name(model_name(str(source)), form), labels=labels, calibration_paths=paths, **common
        )
    report(exported, console)
    return load(exported.path, device)


def _run_path(source: Run | str | Path) -> Path | None:
    """Return the run folder; None if `source` is the name of a backbone."""
    if isinstance(source, Run):
        return source.path
    path = Path(source)
    return path if isinstance(source, Path) or path.exists() or is_run(Path("runs") / path) or len(path.parts) > 1 else None


def _refuse(what: str, arguments: dict[str, object]) -> None:
    given = [name for name, value in arguments.items() if value not in (None, ())]
    if given:
        raise SettingsError(f"{', '.join(given)}: determined by {what}: leave out, or export a backbone")


def _refuse_without_plain(arguments: dict[str, object]) -> None:
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise SettingsError(f"{', '.join(given)}: apply only to plain graphs: add plain=True")


def _config(**settings: Setting) -> FinetuneConfig:
    """Create the validated configuration. Settings that are None keep their defaults.

    Raises:
        SettingsError: a setting is unknown or has an invalid value.
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
