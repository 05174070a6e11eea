"""`tlcli finetune`: fine-tune a pretrained backbone on images, and export the run."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlcli.cli import options
from tlcli.cli.commands.export import model_name, report
from tlcli.cli.console import Console, show
from tlcli.cli.finetune_flags import GROUPS, augmentation_options, data_options, model_options, training_options
from tlcli.cli.interruption import note_how_to_resume
from tlcli.cli.parsing import Command
from tlcli.training.engine.callbacks import RunFolderCallback

if TYPE_CHECKING:
    from tlcli.training import FinetuneConfig, RunResult

_OF_EXPORT = ("models", "name", "no_export", "as_json", "quiet")


@click.command("finetune", cls=Command, groups=GROUPS)
@click.argument("folder", required=False, metavar="[FOLDER]")
@click.option(
    "--recipe", type=click.Choice(["default", "notebook", "scratch"]), help="Set of defaults for a purpose; any flag overrides it."
)
@options.network_options
@model_options
@data_options
@training_options
@augmentation_options
@options.device_option
@options.seed_option
@click.option("--config", "file", type=click.Path(path_type=Path), help="Read settings from this TOML file; flags override them.")
@click.option(
    "--print-config", is_flag=True, help="Print the settings in the format of --config, with the values that they resolve to, and exit."
)
@click.option(
    "--find-lr", "plot", type=click.Path(path_type=Path), metavar="PNG", help="Try learning rates, plot the loss over them, and exit."
)
@click.option(
    "--resume", "begun", type=click.Path(path_type=Path), metavar="RUN", help="Resume an interrupted run; a finished one is not changed."
)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Run folder.  [default: a new one under runs/]")
@click.option("--tensorboard", is_flag=True, default=None, help="Write TensorBoard logs to the run folder, too.")
@click.option("--name", help="Name of the exported model.  [default: the run folder's]")
@options.models_option
@click.option("--no-export", is_flag=True, help="Do not export the run.")
@options.json_option
@options.quiet_option
@click.pass_context
def command(
    context: click.Context,
    /,
    folder: str | None,
    models: Path,
    file: Path | None,
    print_config: bool,
    plot: Path | None,
    begun: Path | None,
    name: str | None,
    no_export: bool,
    as_json: bool,
    quiet: bool,
    **flags: Any,
) -> None:
    """Fine-tune a pretrained network on images, and export it.

    FOLDER contains one folder of images per class, optionally inside train, val and test folders, or is a label file. It is the same
    as --dataset.

    \b
    tlcli finetune --backbone vgg16
    tlcli finetune --backbone resnet50 --dataset cifar10 --mode full
    tlcli finetune --backbone resnet18 --weights FILE PATH/TO/FOLDER
    tlcli finetune --backbone resnet18 labels.csv --group-column patient
    tlcli finetune --from runs/NAME PATH/TO/MORE
    tlcli finetune --resume runs/NAME
    tlcli finetune --resume runs/NAME --dataset NEW/PATH/TO/FOLDER
    """
    folders: list[Path] = []  # holds the run folder once the run can be resumed
    with note_how_to_resume(lambda error: _how_to_resume(error, folders, begun, _export_flags(context))):
        from tlcli.contract.model.repository_layout import require_model_name

        if name is not None:
            require_model_name(name)
        if folder is not None:
            flags["dataset"] = _dataset(folder, flags["dataset"])
        given = {key: value for key, value in flags.items() if value is not None and (options.is_given_by_flag(key) or key == "dataset")}
        config = _checked_config(given, file, begun, name, finds_lr=plot is not None, print_config=print_config)
        if print_config:
            _print_config(config, plot, begun)
            return
        console = Console(quiet)
        if plot is not None:
            _find_lr(config, plot, begun, console)
            return
        result, places = _train(config, given, begun, flags["workers"], console, folders)
    if not result.trained:
        console.say(
            f"to export it: `{shlex.join(['tlcli', 'export', str(begun)])}`; to train longer, start a new run with"
            f" `--from {shlex.quote(str(result.path))}`"
        )
        _show(result, None, as_json)
        return
    with note_how_to_resume(lambda _: f"the run is finished: {_export_command(result, models, name)} exports it"):
        _hand_over(result, console, models, name, no_export, as_json, places)


def _checked_config(
    given: dict[str, Any], file: Path | None, begun: Path | None, name: str | None, *, finds_lr: bool, print_config: bool
) -> FinetuneConfig | None:
    """Return the checked settings of a new run; None if a run is resumed.

    Raises:
        TlcliError: settings contradict each other or the run to resume, or a flag would have no effect.
    """
    from tlcli.cli.finetune_settings import check_dataset, check_same_settings, check_used, finetune_config

    if begun is not None:
        check_same_settings(begun, given, file)
        return None
    config = finetune_config(file, name=name, **given)
    if config.from_run is not None:
        from tlcli.training.runs.starting_run import take_over

        config = take_over(config)
    check_used(config, [*given, *(key for key in ("name", "models", "no_export") if options.is_given_by_flag(key))], finds_lr)
    if not print_config:
        check_dataset(config)
    return config


def _print_config(config: FinetuneConfig | None, plot: Path | None, begun: Path | None) -> None:
    from tlcli.cli.finetune_settings import to_toml

    if plot is not None:
        raise click.UsageError("--print-config and --find-lr cannot be combined: use only one of them")
    if config is None:
        raise click.UsageError(f"--print-config and --resume cannot be combined: the run's settings are in {begun}/config.json")
    click.echo(to_toml(config), nl=False)


def _find_lr(config: FinetuneConfig | None, plot: Path, begun: Path | None, console: Console) -> None:
    from tlcli.training import find_lr

    if config is None:
        raise click.UsageError(f"--find-lr cannot be combined with --resume, because it applies to a new run: leave --resume {begun} out")
    find_lr(config, plot, progress=console.progress, log=console.say)


def _train(
    config: FinetuneConfig | None, given: dict[str, Any], begun: Path | None, workers: int | None, console: Console, folders: list[Path]
) -> tuple[RunResult, dict[str, Any]]:
    """Train a new run or resume one. Return the result and, for a resumed run, the settings that locate its data set."""
    from tlcli.training import finetune, resume

    if config is not None:
        return finetune(config, progress=console.progress, log=console.say, callbacks=[RunFolderCallback(folders)]), {}
    assert begun is not None, "there are settings, or a run to resume"
    places: dict[str, Any] = {key: given[key] for key in ("dataset", "data_dir") if key in given}
    result = resume(begun, progress=console.progress, log=console.say, callbacks=[RunFolderCallback(folders)], workers=workers, **places)
    return result, places


def _dataset(folder: str, flag: str | None) -> str:
    """Return the data set that the positional argument names.

    Raises:
        UsageError: the argument is a backbone or a run, or `--dataset` was also given.
    """
    if flag is not None:
        raise click.UsageError(f"{folder} and --dataset {flag} both name the data set: use only one of them")
    from tlcli.contract.model.repository_layout import is_run
    from tlcli.training.data.registry import KNOWN

    path = Path(folder)
    if path.is_dir() and folder.lower() in KNOWN:
        folder = os.path.abspath(folder)  # the folder, not the known data set of the same name
    if is_run(path):
        raise click.UsageError(
            f"{folder} is a run, not a folder of images: use --resume {folder} to resume it, or `tlcli export {folder}` to export it"
        )
    options.check_images([folder])
    if not path.exists() and folder.lower() not in KNOWN and options.is_backbone(folder):
        raise click.UsageError(f"{folder} is a backbone, not a folder of images: use --backbone {folder}, followed by the folder")
    return folder


def _export_flags(context: click.Context) -> list[str]:
    """Return the flags of this call that apply to the finished run. They are not stored in the run's config."""
    words: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.name in _OF_EXPORT and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE:
            words += [parameter.opts[-1]] if value is True else [parameter.opts[-1], str(value)]
    return words


def _how_to_resume(error: BaseException, folders: list[Path], begun: Path | None, flags: list[str]) -> str | None:
    run = folders[0] if folders else begun
    if run is None:  # PyTorch may not be imported yet; importing it takes seconds
        is_asked = isinstance(error, KeyboardInterrupt) and os.environ.get("RANK", "0") == "0"
        return "no run was started: run the same command again" if is_asked else None
    from tlcli.training.runs.reproduce_command import resume_command
    from tlcli.training.runtime.distributed import is_rank_zero

    return f"{resume_command(run, flags)} resumes it" if is_rank_zero() else None


def _export_command(result: RunResult, models: Path, name: str | None) -> str:
    words = ["tlcli", "export", str(result.path), "--output", str(models), *(["--name", name] if name else [])]
    return f"`{shlex.join(words)}`"


def _hand_over(
    result: RunResult, console: Console, models: Path, name: str | None, no_export: bool, as_json: bool, places: dict[str, Any]
) -> None:
    """Export the run, print the next commands to use, and show the result."""
    from tlcli.training.runs.load_run import load_run
    from tlcli.training.runtime.distributed import is_rank_zero

    if not is_rank_zero():
        return
    model: Path | None = None
    if not no_export:
        from tlcli.exports import export_run

        run = load_run(result.path).on(**places)
        exported = export_run(run, name=name or run.config.name or model_name(result.path.name), repository=models, say=console.say)
        report(exported, console)
        model = exported.path
        console.say("\nnext:")
        folder = exported.path.parents[1]
        console.say(f"  tlcli predict {folder} IMAGE.jpg --cam gradcam")
        console.say(f"  tlcli serve {models}")
        console.say(f"  tlcli classify IMAGE.jpg --model {exported.name} --cam gradcam")
    else:
        console.say(f"\nnext:\n  tlcli export {result.path} --output {models}")
    _show(result, model, as_json)


def _headline(result: RunResult) -> dict[str, float | None]:
    """Return the macro recall of each split if it is the headline metric of the run."""
    from tlcli.training.metrics.headline import why_macro_recall
    from tlcli.training.metrics.scores import Scores
    from tlcli.training.reports.datasheet import read_data_sheet

    sheet = read_data_sheet(result.path)
    if sheet is None or why_macro_recall(sheet.images["train"]) is None:
        return {}
    parts = {"val": result.results.val, "test": result.results.test}
    return {f"{name}_macro_recall": scores.macro_recall for name, scores in parts.items() if isinstance(scores, Scores)}


def _show(result: RunResult, model: Path | None, as_json: bool) -> None:
    row: dict[str, Any] = {"run": str(result.path), **_headline(result), **result.metrics}
    if model is not None:
        row["model"] = str(model)
    show([row], list(row), as_json)
