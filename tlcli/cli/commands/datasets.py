"""`tlcli datasets`: list the known data sets."""

from __future__ import annotations

import click

from tlcli.cli import options
from tlcli.cli.console import show
from tlcli.cli.parsing import Command


@click.command("datasets", cls=Command)
@options.json_option
def command(as_json: bool) -> None:
    """List the known data sets.

    `tlcli finetune` also takes any folder in the ImageFolder layout, and any data set spec of timm.
    """
    from dataclasses import asdict

    from tlcli.training.data.load import known_datasets

    rows = [{key: str(value) if key == "path" else value for key, value in asdict(known).items()} for known in known_datasets()]
    show(rows, list(rows[0]), as_json)
