"""Options that mean the same in every command."""

from __future__ import annotations

import ast
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8001

json_option = click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress.")
models_option = click.option(
    "--models", type=click.Path(path_type=Path, file_okay=False), default=Path("models"), show_default=True, help="The model repository."
)
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to compute."
)
host_option = click.option("--host", default=DEFAULT_HOST, show_default=True, help="The server's address, with or without a port.")
seed_option = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything that is drawn.")


def answer_options(function: F) -> F:
    """What `predict` and `classify` take alike."""
    for option in reversed(
        [
            click.option(
                "--cam",
                "methods",
                metavar="METHOD",
                multiple=True,
                callback=_parse_names,
                help="Write an overlay of this map for every image, for example gradcam. May be repeated or have commas; `all`: every map.",
            ),
            click.option(
                "--cam-class", "wanted", multiple=True, metavar="CLASS", help="Explain this class: label, id, or -r.  [default: the best]"
            ),
            click.option("--softmax", is_flag=True, help="Explain the class's probability instead of its score before the softmax."),
            click.option(
                "--max-channels",
                type=click.IntRange(min=1),
                help="Channels that scorecam and faster_scorecam look through.  [default: all, and 10]",
            ),
            click.option(
                "--overlays",
                type=click.Path(path_type=Path, file_okay=False),
                default=Path("overlays"),
                show_default=True,
                help="Folder for the overlays; where it holds something, the next free NAME-2, NAME-3.",
            ),
            click.option(
                "--csv",
                "csv_path",
                type=click.Path(path_type=Path, dir_okay=False),
                help="Write path,label,class_id,score, a row an image; with --top-k above 1 a row a class, with its rank.",
            ),
            click.option(
                "--top-k",
                type=click.IntRange(min=1),
                default=1,
                show_default=True,
                help="How many of the best classes to answer.",
            ),
        ]
    ):
        function = option(function)
    return function


def server_options(function: Callable[..., None]) -> Callable[..., None]:
    """Where a server is, and how to be let in: the command gets `host`, `port`, and `how`, the `ConnectionOptions` of the clients."""
    file = click.Path(path_type=Path, dir_okay=False)

    @functools.wraps(function)
    def collected(*, token_file: Path | None, tls: bool, **others: Any) -> None:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it would say of a failed handshake, the error says; read at its import
        from tlcli.service.client.connection import ConnectionOptions
        from tlcli.service.security.tokens import read_token

        if not is_given_by_flag("port"):
            others["port"] = None  # the one in --host, or the default
        files = {name: others.pop(name) for name in ("tls_ca", "tls_certificate", "tls_key")}
        function(how=ConnectionOptions(tls=tls, token=None if token_file is None else read_token(token_file), **files), **others)  # type: ignore[typeddict-item]

    command: Callable[..., None] = collected
    for option in reversed(
        [
            host_option,
            port_option(),
            click.option("--tls", is_flag=True, help="Use TLS, and trust the authorities that all know."),
            click.option("--tls-ca", type=file, help="Use TLS, and trust the authorities in this PEM file."),
            click.option("--tls-certificate", type=file, help="Show this certificate, PEM, where the server asks for one."),
            click.option("--tls-key", type=file, help="Its private key, PEM."),
            click.option("--token-file", type=file, help="Send the token in this file."),
        ]
    ):
        command = option(command)
    return command


def check_map_flags(methods: Sequence[str], wanted: Sequence[str], softmax: bool, max_channels: int | None) -> None:
    """Refuse flags that say how a map is made where no map takes them.

    Args:
        methods, wanted, softmax, max_channels: as `answer_options` gives them.

    Raises:
        SettingsError: one of those, or `--overlays`, would be ignored.
    """
    from tlcli.contract.errors import SettingsError
    from tlcli.contract.maps.method_names import METHODS
    from tlcli.contract.maps.scorecam import DEFAULT_CHANNELS, is_score_cam

    if not methods:
        for flag, is_given, what in (
            ("--softmax", softmax, "says what a map explains"),
            ("--cam-class", bool(wanted), "says which class a map explains"),
            ("--overlays", is_given_by_flag("overlays"), "is the folder for overlays of maps"),
        ):
            if is_given:
                raise SettingsError(f"{flag} {what}: name a map with --cam")
    bare = [METHODS[name] for name in (method.partition("@")[0] for method in methods) if name in METHODS]
    if methods and len(bare) == len(methods) and not any(method.of_class for method in bare):
        flags = [flag for flag, is_given in (("--softmax", softmax), ("--cam-class", bool(wanted))) if is_given]
        if flags:
            raise SettingsError(f"{' and '.join(flags)}: {', '.join(methods)} is the same for every class: leave the flag out")
    if max_channels is not None and not any(is_score_cam(method) or method == "all" for method in methods):
        raise SettingsError(f"--max-channels is for {' and '.join(DEFAULT_CHANNELS)}: name one of them with --cam")


def require_model(model: Path, others: Sequence[str | Path]) -> Path:
    """The ONNX file of the first argument, see `tlcli.contract.model.repository_layout.find_model_file`.

    Args:
        model: the first argument. others: those after it, among which there may be a model that was meant to be first.

    Raises:
        NotFoundError: it is no model.
    """
    from tlcli.contract.errors import NotFoundError
    from tlcli.contract.model.repository_layout import find_model_file

    try:
        return find_model_file(model)
    except NotFoundError as error:
        for other in map(Path, others):
            if other.exists() and _is_model(other):
                raise NotFoundError(f"{model}: not a model, but {other} is one: give the model first") from error
        raise


def check_images(paths: Sequence[str | Path]) -> None:
    """Raises: SettingsError: a model or a run where images are expected."""
    from tlcli.contract.errors import SettingsError
    from tlcli.contract.model.repository_layout import is_run

    for path in map(Path, paths):
        if is_run(path):
            raise SettingsError(f"{path}: a run, where images are expected")
        if _is_model(path):
            raise SettingsError(f"{path}: a model, where images are expected")


def _is_model(path: Path) -> bool:
    from tlcli.contract.model.repository_layout import MODEL_FILE, versions

    return bool(versions(path)) or (path / MODEL_FILE).is_file() or (path.is_file() and path.suffix.lower() == ".onnx")


def is_given_by_flag(name: str) -> bool:
    """True if a parameter of the current command was not left at its default."""
    return click.get_current_context().get_parameter_source(name) not in (None, click.core.ParameterSource.DEFAULT)


def require_backbone_flags(names: Iterable[str]) -> None:
    """For commands that take a run or `--backbone`, where a run came.

    Args:
        names: parameters of the current command that go with `--backbone` only.

    Raises:
        UsageError: some of them were given.
    """
    context = click.get_current_context()
    flags = {str(parameter.name): parameter.opts[0] for parameter in context.command.params}
    given = [name for name in names if is_given_by_flag(name)]
    if given:
        raise click.UsageError(f"{', '.join(flags[name] for name in given)}: a run knows these itself; they go with --backbone")


def port_option() -> Callable[[F], F]:
    """`--port`."""
    return click.option("--port", type=click.IntRange(1, 65535), default=DEFAULT_PORT, show_default=True, help="The server's port.")


def network_options(function: F) -> F:
    """Which backbone, with what weights, seeing images how."""
    for option in reversed(
        [
            click.option("--backbone", default=None, help="A timm model's name; `tlcli backbones` lists them."),
            click.option(
                "--weights",
                default="pretrained",
                show_default=True,
                help="`pretrained`, `none`, or a checkpoint (safetensors or PyTorch).",
            ),
            click.option(
                "--model-kwargs",
                "model_kwargs",
                multiple=True,
                metavar="KEY=VALUE",
                callback=_parse_pairs,
                help="More arguments of timm.create_model, such as pad_type=same. May be repeated.",
            ),
            click.option("--image-size", type=click.IntRange(8, 4096), help="Height and width of the input.  [default: the backbone's]"),
            click.option("--crop-pct", type=float, help="Share of the image's shorter side that is kept.  [default: the backbone's]"),
            click.option(
                "--crop-mode", type=click.Choice(["center", "squash", "border"]), help="How an image is made to fit.  [default: center]"
            ),
            click.option(
                "--interpolation",
                type=click.Choice(["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]),
                help="How it is resized.  [default: the backbone's]",
            ),
            click.option("--mean", metavar="R,G,B", callback=_parse_triple, help="Of the input in [0, 1]; one number serves all."),
            click.option("--std", metavar="R,G,B", callback=_parse_triple, help="Likewise."),
        ]
    ):
        function = option(function)
    return function


def _parse_names(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Names, repeated or with commas between them, each once."""
    names = [name.strip() for value in values for name in value.split(",")]
    if not all(names):
        raise click.BadParameter(f"{', '.join(map(repr, values))}: an empty name: expected names with commas between them")
    return tuple(dict.fromkeys(names))


def _parse_pairs(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, bool | int | float | str]:
    pairs: dict[str, bool | int | float | str] = {}
    for value in values:
        key, sign, text = value.partition("=")
        if not sign or not key.isidentifier():
            raise click.BadParameter(f"{value!r}: expected KEY=VALUE, for example pad_type=same")
        try:
            parsed = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
        except (ValueError, SyntaxError):
            parsed = text
        if key in pairs:
            raise click.BadParameter(f"{key} is given twice, as {pairs[key]} and {text}: expected it once")
        pairs[key] = parsed if isinstance(parsed, bool | int | float) else text
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
        raise click.BadParameter(f"{value!r}: expected one number, or three with commas, for example 0.5 or 0.485,0.456,0.406")
    return numbers[0], numbers[1], numbers[2]
