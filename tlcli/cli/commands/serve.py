"""`tlcli serve`: start the server."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic.fields import FieldInfo

from tlcli.cli.parsing import Command
from tlcli.contract.errors import NotFoundError, SettingsError
from tlcli.contract.model.repository_layout import not_a_repository
from tlcli.service.settings.server_settings import SETTINGS, choices_of, kind_of
from tlcli.service.settings.sources import ARGUMENT, CONFIG_VARIABLE, PREFIX, Config, configure, flag, to_toml

F = TypeVar("F", bound=Callable[..., Any])


def setting_options(function: F) -> F:
    """Add a flag for each setting.

    A flag that is not given is None. A flag that is given is a string, which is parsed like an environment variable.
    """
    for name, field in reversed(SETTINGS.items()):
        if name != ARGUMENT:
            function = _option(name, field)(function)
    return function


def _option(name: str, field: FieldInfo) -> Callable[[F], F]:
    kind = kind_of(field)
    if kind is bool:
        return click.option(f"{flag(name)}/{flag(name).replace('--', '--no-', 1)}", name, default=None, help=field.description)
    metavar = "|".join(choices_of(field)) or {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(kind, "TEXT")
    default = "not set" if field.default is None else field.default
    return click.option(flag(name), name, metavar=metavar, help=f"{field.description}  [default: {default}]")


@click.command(
    "serve",
    cls=Command,
    epilog=f"Every flag can be set by an environment variable, such as {PREFIX}PORT, or by a key of --config, such as port.",
)
@click.argument("models", required=False)
@click.option("--config", "file", type=click.Path(path_type=Path), help=f"Read settings from this TOML file.  [env: {CONFIG_VARIABLE}]")
@click.option("--print-config", is_flag=True, help="Print the settings in the format of --config, with their sources, and exit.")
@setting_options
def command(file: Path | None, print_config: bool, **flags: Any) -> None:
    """Serve every model of a repository over gRPC, and over HTTP with --http-port.

    MODELS is the model repository, MODELS/NAME/VERSION/model.onnx.  [default: models]
    """
    from tlcli.service import serve

    given = {name: value for name, value in flags.items() if value is not None}
    config = configure(given, os.environ, file)
    _check_used(config)
    if not print_config and (problem := not_a_repository(config.settings.models)):
        raise NotFoundError(problem)
    if print_config:
        click.echo(to_toml(config), nl=False)
    else:
        serve(config.settings)


def _check_used(config: Config) -> None:
    """Reject flags that have no effect because of another setting.

    Raises:
        SettingsError: a flag has no effect.
    """
    settings = config.settings
    for name, is_used, needed in (
        ("tf32", not settings.tf32 or settings.device != "cpu", "a GPU: leave it out, or use --device cuda"),
        ("poll_s", settings.model_control == "poll", "--model-control poll"),
        ("metrics_host", settings.metrics_port is not None, "--metrics-port"),
    ):
        override = config.overrides.get(name)
        if override is not None and override.source.startswith("--") and not is_used:
            raise SettingsError(f"{override.source} needs {needed}")
