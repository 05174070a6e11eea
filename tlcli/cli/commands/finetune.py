"""`tlcli finetune`: images and a pretrained backbone to a run, and the run to a model."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlcli.cli import options
from tlcli.cli.commands.export import model_name, report
from tlcli.cli.console import Console, show
from tlcli.cli.finetune_flags import data_options, image_options, training_options, what_options
from tlcli.cli.interruption import told_how_to_go_on
from tlcli.cli.parsing import Command
from tlcli.training.engine.callbacks import Callback

if TYPE_CHECKING:
    from tlcli.training import RunResult

_OF_EXPORT = ("models", "name", "no_export", "as_json", "quiet")


@click.command("finetune", cls=Command)
@click.argument("folder", required=False, metavar="[FOLDER]")
@click.option(
    "--recipe", type=click.Choice(["default", "notebook", "scratch"]), help="Settings that belong together; any flag overrides them."
)
@options.network_options
@what_options
@data_options
@training_options
@image_options
@options.device_option
@options.seed_option
@click.option("--config", "file", type=click.Path(path_type=Path), help="Read settings from this TOML file; flags override them.")
@click.option("--print-config", is_flag=True, help="Print the settings as --config reads them, and what they come to, and leave.")
@click.option("--find-lr", "plot", type=click.Path(path_type=Path), metavar="PNG", help="Try rates, plot the loss over them, and leave.")
@click.option(
    "--resume", "begun", type=click.Path(path_type=Path), metavar="RUN", help="Resume an interrupted run; a finished one is left alone."
)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="The run's folder.  [default: a fresh one under runs/]")
@click.option("--tensorboard", is_flag=True, default=None, help="Write TensorBoard's logs into the run's folder too.")
@click.option("--name", help="The model's name.  [default: the run's folder]")
@options.models_option
@click.option("--no-export", is_flag=True, help="Leave the export out.")
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
    """Fine-tune a pretrained CNN on images, and export it.

    FOLDER has a folder of images for each class, with or without train, val and test above them; it is the same as --dataset.

    \b
    tlcli finetune --backbone vgg16
    tlcli finetune --backbone resnet50 --dataset cifar10 --mode full
    tlcli finetune --backbone resnet18 --weights FILE PATH/TO/FOLDER
    tlcli finetune --resume runs/NAME
    tlcli finetune --resume runs/NAME --dataset WHERE/IT/IS/NOW
    """
    from tlcli.cli.finetune_settings import check_dataset, check_same_settings, check_used, finetune_config, to_toml
    from tlcli.contract.model.repository_layout import require_model_name

    if name is not None:
        require_model_name(name)
    if folder is not None:
        flags["dataset"] = _dataset(folder, flags["dataset"])
    given = {key: value for key, value in flags.items() if value is not None and (options.is_given_by_flag(key) or key == "dataset")}
    if begun is not None:
        check_same_settings(begun, given, file)
    else:
        config = finetune_config(file, name=name, **given)
        flagged = [*given, *(key for key in ("name", "models", "no_export") if options.is_given_by_flag(key))]
        check_used(config, flagged, finds_lr=plot is not None)
    if print_config:
        if plot is not None:
            raise click.UsageError("--print-config and --find-lr: one prints the settings and leaves, the other trains: give one of them")
        if begun is not None:
            raise click.UsageError(f"--print-config and --resume: a run's settings are in {begun / 'config.json'}")
        click.echo(to_toml(config), nl=False)
        return
    if begun is None:
        check_dataset(config)
    console = Console(quiet)
    places: dict[str, Any] = {key: given[key] for key in ("dataset", "data_dir") if key in given} if begun is not None else {}

    from tlcli.training import find_lr, finetune, resume
    from tlcli.training.settings.run_file_names import CHECKPOINT

    if plot is not None:
        if begun is not None:
            raise click.UsageError("--find-lr and --resume: rates are tried before a run is begun")
        find_lr(config, plot, progress=console.progress, log=console.say)
        return
    folders: list[Path] = []  # at most one: the run's, once it can be resumed
    callbacks = [_FolderCallback(folders)]
    with told_how_to_go_on(lambda error: _way_on(error, folders, begun, _export_flags(context))):
        if begun is not None:
            result = resume(begun, console.progress, console.say, callbacks, workers=flags["workers"], **places)
        else:
            result = finetune(config, console.progress, console.say, callbacks)
    if not result.trained:
        console.say(
            f"to export it: `{shlex.join(['tlcli', 'export', str(begun)])}`; to train longer, begin a new run with"
            f" `--weights {shlex.quote(str(result.path / CHECKPOINT))}`"
        )
        _show(result, None, as_json)
        return
    with told_how_to_go_on(lambda _: f"the run is finished: {_export_command(result, models, name)} exports it"):
        _hand_over(result, console, models, name, no_export, as_json, places)


def _dataset(folder: str, flag: str | None) -> str:
    """The data set that the argument names; a backbone or a run is no data set."""
    if flag is not None:
        raise click.UsageError(f"{folder} and --dataset {flag}: both name the data set: give one of them")
    from tlcli.contract.model.repository_layout import is_run
    from tlcli.training.data.registry import KNOWN

    path = Path(folder)
    if path.is_dir() and folder.lower() in KNOWN:
        folder = os.path.abspath(folder)  # the folder, not the known data set of its name
    if is_run(path):
        raise click.UsageError(f"{folder}: a run, not images: --resume {folder} resumes it, `tlcli export {folder}` exports it")
    options.check_images([folder])
    if not path.exists():
        from tlcli.contract.errors import TlcliError

        if folder.lower() not in KNOWN and "/" not in folder:
            from tlcli.training.models.list_backbones import list_backbones

            try:
                is_backbone = any(backbone.name == folder for backbone in list_backbones(folder))
            except TlcliError:
                is_backbone = False
            if is_backbone:
                raise click.UsageError(f"{folder}: a backbone, not a folder of images: say --backbone {folder}, and the folder after it")
    return folder


def _export_flags(context: click.Context) -> list[str]:
    """Those of this call that say what to do with the finished run; a run's config does not hold them."""
    words: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.name in _OF_EXPORT and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE:
            words += [parameter.opts[-1]] if value is True else [parameter.opts[-1], str(value)]
    return words


class _FolderCallback(Callback):
    """Callback that adds the run's folder to a list as soon as the run can be resumed."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders

    def on_run_start(self, folder: Path) -> None:
        """Add the folder."""
        self._folders.append(folder)


def _way_on(error: BaseException, folders: list[Path], begun: Path | None, flags: list[str]) -> str | None:
    from tlcli.training.runs.reproduce_command import resume_command
    from tlcli.training.runtime.distributed import is_rank_zero

    run = folders[0] if folders else begun
    if not is_rank_zero():
        return None
    if run is not None:
        return f"{resume_command(run, flags)} resumes it"
    return "no run was begun: the same command begins it anew" if isinstance(error, KeyboardInterrupt) else None


def _export_command(result: RunResult, models: Path, name: str | None) -> str:
    words = ["tlcli", "export", str(result.path), "--models", str(models), *(["--name", name] if name else [])]
    return f"`{shlex.join(words)}`"


def _hand_over(
    result: RunResult, console: Console, models: Path, name: str | None, no_export: bool, as_json: bool, places: dict[str, Any]
) -> None:
    """Export the run, and say what comes next."""
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
        console.say(f"\nnext:\n  tlcli export {result.path} --models {models}")
    _show(result, model, as_json)


def _show(result: RunResult, model: Path | None, as_json: bool) -> None:
    row: dict[str, Any] = {"run": str(result.path), **result.metrics}
    if model is not None:
        row["model"] = str(model)
    show([row], list(row), as_json)
