"""`tlcli serve`: start the server."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from tlcli.cli.parsing import Command
from tlcli.contract.errors import NotFoundError, SettingsError
from tlcli.contract.model.repository_layout import not_a_repository
from tlcli.service.settings.field import Setting
from tlcli.service.settings.server_settings import SETTINGS
from tlcli.service.settings.sources import ARGUMENT, CONFIG_VARIABLE, PREFIX, Config, configure, flag, to_toml

F = TypeVar("F", bound=Callable[..., Any])


def setting_options(function: F) -> F:
    """Add a flag for each setting: None if it is not given, else a text, parsed as environment variables are."""
    for one in reversed(SETTINGS):
        if one.name != ARGUMENT:
            function = _option(one)(function)
    return function


def _option(one: Setting) -> Callable[[F], F]:
    default = "not set" if one.default is None else one.default
    text = f"{one.told.text}  [default: {default}]"
    if one.kind is bool:
        return click.option(f"{flag(one)}/{flag(one).replace('--', '--no-', 1)}", one.name, default=None, help=one.told.text)
    kinds = {int: "INTEGER", float: "NUMBER", Path: "PATH"}
    return click.option(flag(one), one.name, metavar="|".join(one.told.choices) or kinds.get(one.kind, "TEXT"), help=text)


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
    """Refuse flags that another setting makes ineffective.

    Raises:
        SettingsError: such a flag.
    """
    settings = config.settings
    for name, is_used, needed in (
        ("tf32", not settings.tf32 or settings.device != "cpu", "a GPU: leave it out, or use --device cuda"),
        ("poll_s", settings.model_control == "poll", "--model-control poll"),
        ("metrics_host", settings.metrics_port is not None, "--metrics-port"),
    ):
        given = config.given.get(name)
        if given is not None and given.source.startswith("--") and not is_used:
            raise SettingsError(f"{given.source} needs {needed}")
