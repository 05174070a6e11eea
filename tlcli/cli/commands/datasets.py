"""`tlcli datasets`: those known by name."""

from __future__ import annotations

import click

from tlcli.cli import options
from tlcli.cli.console import show
from tlcli.cli.parsing import Command


@click.command("datasets", cls=Command)
@options.json_option
def command(as_json: bool) -> None:
    """List the data sets known by name.

    Any folder in the ImageFolder layout, and any data set spec that timm takes, works as well.
    """
    from dataclasses import asdict

    from tlcli.training.data.load import known_datasets

    rows = [{key: str(value) if key == "path" else value for key, value in asdict(known).items()} for known in known_datasets()]
    show(rows, list(rows[0]), as_json)
