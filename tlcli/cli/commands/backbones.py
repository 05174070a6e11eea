"""`tlcli backbones`: the CNNs in timm's registry."""

from __future__ import annotations

import click

from tlcli.cli import options
from tlcli.cli.console import show
from tlcli.cli.parsing import Command


@click.command("backbones", cls=Command)
@click.argument("pattern", default="*")
@options.json_option
def command(pattern: str, as_json: bool) -> None:
    """List the backbones there are.

    PATTERN is a part of the name, or a pattern with *, such as 'resnet*'.
    """
    from tlcli.contract.errors import NotFoundError
    from tlcli.training.models.list_backbones import list_backbones

    found = list_backbones(pattern)
    if not found:
        raise NotFoundError(f"no backbone matches {pattern!r}: `tlcli backbones` lists all of them")
    rows = [{"name": one.name, "family": one.family, "pretrained": list(one.pretrained)} for one in found]
    if as_json:
        show(rows, [], as_json=True)
    else:
        short = [row | {"pretrained": _shorten(one.pretrained)} for row, one in zip(rows, found, strict=True)]
        show(short, ["name", "family", "pretrained"], as_json=False)


def _shorten(tags: tuple[str, ...]) -> str:
    return ", ".join(tags[:3]) + (f", {len(tags) - 3} more" if len(tags) > 3 else "")
