"""Options with the same meaning in every command."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tlcli.training.settings.model_arguments import Argument, argument_text, parse_argument

if TYPE_CHECKING:
    from tlcli.cli.console import Console

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8001

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Show no progress; warnings are always shown.")
models_option = click.option(
    "--models",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("models"),
    show_default=True,
    help="Folder of the model repository.",
)
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Device to compute on."
)
host_option = click.option("--host", default=DEFAULT_HOST, show_default=True, help="Address of the server, with or without a port.")
seed_option = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed.")
data_dir_option = click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Folder of the known data sets.  [default: the cache]"
)


def _parse_columns(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str] | None:
    columns: dict[str, str] = {}
    for pair in (pair for value in values for pair in value.split(",")):
        purpose, sign, name = (part.strip() for part in pair.partition("="))
        if not sign or not purpose or not name:
            raise click.BadParameter(f"{pair!r}: expected PURPOSE=NAME, such as path=file,label=class")
        if columns.setdefault(purpose, name) != name:
            raise click.BadParameter(f"{purpose} is given twice, as {columns[purpose]} and {name}: use only one of them")
    return columns or None


columns_option = click.option(
    "--columns",
    multiple=True,
    metavar="PURPOSE=NAME",
    callback=_parse_columns,
    help="Columns of a label file that have other names than path, label, labels, split, group and weight, such as path=file,label=class.",
)


def folder_option(default: str, text: str) -> Callable[[F], F]:
    """Return the option `--output` for a results folder.

    Args:
        default: default folder.
        text: help text of the option.
    """
    return click.option(
        "-o", "--output", type=click.Path(path_type=Path, file_okay=False), default=Path(default), show_default=True, help=text
    )


def answer_options(function: F) -> F:
    """Add the options shared by `predict` and `classify`."""
    for option in reversed(
        [
            click.option(
                "--cam",
                "cams",
                metavar="METHOD",
                multiple=True,
                callback=parse_names,
                help="Write an overlay of this map for every image, such as gradcam; several with commas, or `all`.",
            ),
            click.option(
                "--cam-class",
                "classes",
                multiple=True,
                metavar="CLASS",
                help="Explain this class: a label, an id, or -r for rank r. May be repeated.  [default: -1, the first, or every label]",
            ),
            click.option("--softmax", is_flag=True, help="Explain the softmax probability of the class instead of its logit."),
            click.option(
                "--max-channels",
                type=click.IntRange(min=1),
                help="Number of channels that a Score-CAM scores.  [default: all for scorecam, 10 for faster_scorecam]",
            ),
            folder_option("overlays", "Folder for the overlays. A number is appended if it is not empty, such as overlays-2."),
            click.option(
                "--csv",
                "csv_path",
                type=click.Path(path_type=Path, dir_okay=False),
                help="Write path,label,class_id,score to this CSV file, one row per image; with --top-k above 1, one per class.",
            ),
            click.option(
                "--top-k",
                type=click.IntRange(min=1),
                default=1,
                help="Number of top-ranked classes to show.  [default: 1, or the labels of a model with several per image]",
            ),
        ]
    ):
        function = option(function)
    return function


def server_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options for a server connection.

    The command receives the arguments `host`, `port` and `how`, which holds the clients' `ConnectionOptions`.
    """
    file = click.Path(path_type=Path, dir_okay=False)

    @functools.wraps(function)
    def collected(*, token_file: Path | None, tls: bool, **others: Any) -> None:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # our errors replace gRPC's log; gRPC reads this on import
        from tlcli.service.client.connection import ConnectionOptions
        from tlcli.service.security.tokens import read_token

        if not is_given_by_flag("port"):
            others["port"] = None  # use the port in --host, or the default port
        files = {name: others.pop(name) for name in ("tls_ca", "tls_certificate", "tls_key")}
        function(how=ConnectionOptions(tls=tls, token=None if token_file is None else read_token(token_file), **files), **others)  # type: ignore[typeddict-item]

    command: Callable[..., None] = collected
    for option in reversed(
        [
            host_option,
            port_option(),
            click.option("--tls", is_flag=True, help="Use TLS, and trust the public certificate authorities."),
            click.option("--tls-ca", type=file, help="Use TLS, and trust the certificate authorities in this PEM file."),
            click.option("--tls-certificate", type=file, help="Client certificate (PEM), for a server that requires one."),
            click.option("--tls-key", type=file, help="Private key of the client certificate (PEM)."),
            click.option("--token-file", type=file, help="File with the token to send."),
        ]
    ):
        command = option(command)
    return command


def check_map_flags(cams: Sequence[str], classes: Sequence[str], softmax: bool, max_channels: int | None) -> None:
    """Reject map flags that would have no effect.

    Args:
        cams, classes, softmax, max_channels: values of the options that `answer_options` adds.

    Raises:
        SettingsError: one of these flags, or `--output`, would be ignored.
    """
    from tlcli.contract.errors import SettingsError
    from tlcli.contract.maps.method_names import METHODS
    from tlcli.contract.maps.scorecam import DEFAULT_CHANNELS, is_score_cam

    if not cams:
        for flag, is_given, purpose in (
            ("--softmax", softmax, "sets what a map explains"),
            ("--cam-class", bool(classes), "sets the class that a map explains"),
            ("--output", is_given_by_flag("output"), "is the folder for overlays of maps"),
        ):
            if is_given:
                raise SettingsError(f"{flag} {purpose}: add a map with --cam")
    bare = [METHODS[name] for name in (cam.partition("@")[0] for cam in cams) if name in METHODS]
    if cams and len(bare) == len(cams) and not any(method.of_class for method in bare):
        flags = [flag for flag, is_given in (("--softmax", softmax), ("--cam-class", bool(classes))) if is_given]
        if flags:
            raise SettingsError(f"{' and '.join(flags)}: {', '.join(cams)} is the same for every class: leave the flag out")
    if max_channels is not None and not any(is_score_cam(cam) or cam == "all" for cam in cams):
        raise SettingsError(f"--max-channels applies to {' and '.join(DEFAULT_CHANNELS)}: add one of them with --cam")


def require_model(model: Path, others: Sequence[str | Path]) -> Path:
    """Return the ONNX file of the first argument; see `tlcli.contract.model.repository_layout.find_model_file`.

    Args:
        model: the first argument.
        others: the remaining arguments. If one of them is a model, the error message suggests that it was meant to be first.

    Raises:
        NotFoundError: the first argument is not a model.
    """
    from tlcli.contract.errors import NotFoundError
    from tlcli.contract.model.repository_layout import find_model_file

    try:
        return find_model_file(model)
    except NotFoundError as error:
        for other in map(Path, others):
            if other.exists() and _is_model(other):
                raise NotFoundError(f"{model} is not a model, but {other} is one: give the model first") from error
        if not model.exists() and is_backbone(str(model)):
            raise NotFoundError(
                f"{model} is a backbone, not an exported model: `tlcli export --backbone {model}` exports it to models/{model}"
            ) from error
        raise


def check_images(paths: Sequence[str | Path]) -> None:
    """Check that the paths are not models or runs.

    Raises:
        SettingsError: one of the paths is a model or a run.
    """
    from tlcli.contract.errors import SettingsError
    from tlcli.contract.model.repository_layout import is_run

    for path in map(Path, paths):
        if is_run(path):
            raise SettingsError(f"{path} is a run: expected an image or a folder of images")
        if _is_model(path):
            raise SettingsError(f"{path} is a model: expected an image or a folder of images")


def find_images(paths: Sequence[Path], console: Console) -> list[Path]:
    """Return the image files in `paths` and report the skipped files of folders.

    Raises:
        NotFoundError: see `tlcli.contract.images.find_images.find`.
    """
    from tlcli.contract.images.find_images import Skipped, describe, find

    skipped: list[Skipped] = []
    found = find(paths, skipped)
    for line in describe(skipped):
        console.say(line)
    return found


def _is_model(path: Path) -> bool:
    from tlcli.contract.model.repository_layout import MODEL_FILE, versions

    return bool(versions(path)) or (path / MODEL_FILE).is_file() or (path.is_file() and path.suffix.lower() == ".onnx")


def is_backbone(name: str) -> bool:
    """Return True if `name` is the name of a backbone. Return False if timm is not installed.

    Use this function only for error messages, because it imports timm.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)?", name):
        return False
    try:
        from tlcli.training.models.list_backbones import list_backbones
    except ModuleNotFoundError:
        return False
    return any(backbone.name == name for backbone in list_backbones(name))


def is_given_by_flag(name: str) -> bool:
    """Return True if a parameter of the current command was set explicitly instead of left at its default."""
    return click.get_current_context().get_parameter_source(name) not in (None, click.core.ParameterSource.DEFAULT)


def require_backbone_flags(names: Iterable[str]) -> None:
    """Reject options that apply only to `--backbone`. Call this function if the command was given a run.

    Args:
        names: names of the current command's parameters that apply only to `--backbone`.

    Raises:
        UsageError: at least one of them was given.
    """
    reject_flags(names, "determined by the run: leave out, or use --backbone")


def reject_flags(names: Iterable[str], reason: str) -> None:
    """Reject options that would have no effect.

    Args:
        names: names of the current command's parameters.
        reason: end of the message.

    Raises:
        UsageError: at least one of them was given.
    """
    context = click.get_current_context()
    flags = {str(parameter.name): parameter.opts[0] for parameter in context.command.params}
    given = [name for name in names if is_given_by_flag(name)]
    if given:
        raise click.UsageError(f"{', '.join(flags[name] for name in given)}: {reason}")


def port_option() -> Callable[[F], F]:
    """Return the option `--port`."""
    return click.option("--port", type=click.IntRange(1, 65535), default=DEFAULT_PORT, show_default=True, help="Port of the server.")


def network_options(function: F) -> F:
    """Add the options for the backbone, its weights and its preprocessing."""
    for option in reversed(
        [
            click.option("--backbone", default=None, help="Name of a timm model; `tlcli backbones` lists them."),
            click.option(
                "--weights",
                default="pretrained",
                show_default=True,
                help="`pretrained`, `none`, or a checkpoint file (safetensors or PyTorch).",
            ),
            click.option(
                "--model-kwargs",
                "model_kwargs",
                multiple=True,
                metavar="KEY=VALUE",
                callback=_parse_pairs,
                help="Extra argument of timm.create_model, such as pad_type=same or depths=2,2,6,2. May be repeated.",
            ),
            click.option("--image-size", type=click.IntRange(8, 4096), help="Height and width of the input.  [default: the backbone's]"),
            click.option(
                "--crop-pct",
                type=float,
                help="Fraction of the image's shorter side that the crop keeps, such as 0.875.  [default: the backbone's]",
            ),
            click.option(
                "--crop-mode",
                type=click.Choice(["center", "squash", "border"]),
                help="How images fit the input: crop the center, squash to a square, or pad with a border.  [default: center]",
            ),
            click.option(
                "--interpolation",
                type=click.Choice(["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]),
                help="Filter for resizing.  [default: the backbone's]",
            ),
            click.option(
                "--mean", metavar="R,G,B", callback=_parse_triple, help="Mean of the input in [0, 1]; one number for all channels."
            ),
            click.option(
                "--std", metavar="R,G,B", callback=_parse_triple, help="Standard deviation of the input in [0, 1]; one number for all."
            ),
        ]
    ):
        function = option(function)
    return function


def parse_names(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Split the values at commas and return the distinct names.

    Raises:
        BadParameter: a name is empty.
    """
    names = [name.strip() for value in values for name in value.split(",")]
    if not all(names):
        raise click.BadParameter(f"{', '.join(map(repr, values))} contains an empty name: expected names separated by commas")
    return tuple(dict.fromkeys(names))


def _parse_pairs(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, Argument]:
    pairs: dict[str, Argument] = {}
    for value in values:
        key, sign, text = value.partition("=")
        if not sign or not key.isidentifier():
            raise click.BadParameter(f"{value!r}: expected KEY=VALUE, such as pad_type=same")
        if key in pairs:
            raise click.BadParameter(f"{key} is given twice, as {argument_text(pairs[key])} and {text}: use only one of them")
        pairs[key] = parse_argument(text)
    return pairs


def _parse_triple(ctx: click.Context, option: click.Parameter, value: str | None) -> tuple[float, float, float] | None:
    if value is None:
        return None
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise click.BadParameter(f"{value!r}: expected one number, or three with commas, such as 0.5 or 0.485,0.456,0.406")
    return numbers[0], numbers[1], numbers[2]
