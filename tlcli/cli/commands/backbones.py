"""`tlcli backbones`: list the backbones."""

from __future__ import annotations

import click

from tlcli.cli import options
from tlcli.cli.console import shorten, show
from tlcli.cli.parsing import Command


@click.command("backbones", cls=Command)
@click.argument("pattern", default="*")
@options.json_option
def command(pattern: str, as_json: bool) -> None:
    """List the available backbones.

    PATTERN is part of a name, or a pattern with *, such as 'resnet*'.
    """
    from tlcli.contract.errors import NotFoundError
    from tlcli.training.models.list_backbones import list_backbones

    backbones = list_backbones(pattern)
    if not backbones:
        raise NotFoundError(f"no backbone matches {pattern!r}: `tlcli backbones` lists all of them")
    rows = [
        {
            "name": backbone.name,
            "family": backbone.family,
            "pretrained": list(backbone.pretrained) if as_json else shorten(backbone.pretrained),
        }
        for backbone in backbones
    ]
    show(rows, ["name", "family", "pretrained"], as_json)
