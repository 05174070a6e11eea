"""`tlcli classify`: the same answer as `predict`, over gRPC."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tlcli.cli import options
from tlcli.cli.answer_output import ImageAnswer, OverlayFolder, Ranked, class_targets, columns, write_csv
from tlcli.cli.console import Console, show
from tlcli.cli.parsing import Command

if TYPE_CHECKING:
    from tlcli.service.client.connection import ConnectionOptions


@click.command("classify", cls=Command)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", default="", help="The model's name; needed where the server holds several.")
@click.option("--version", default="", help="Its version.  [default: the latest]")
@options.answer_options
@options.server_options
@options.json_option
@click.option("--jsonl", "as_lines", is_flag=True, help="Print each answer as it comes: a JSON object a line.")
@options.quiet_option
def command(
    images: tuple[Path, ...],
    model: str,
    version: str,
    methods: tuple[str, ...],
    wanted: tuple[str, ...],
    softmax: bool,
    max_channels: int | None,
    overlays: Path,
    csv_path: Path | None,
    top_k: int,
    host: str,
    port: int | None,
    how: ConnectionOptions,
    as_json: bool,
    as_lines: bool,
    quiet: bool,
) -> None:
    """Ask a running server about images.

    IMAGES are files and folders; several are asked about at a time. An image that the server refuses is named,
    the others are answered, and the exit code is 1.
    """
    from tlcli.contract.errors import ImageError, RequestError, SettingsError
    from tlcli.contract.files.display_name import printable
    from tlcli.contract.images import decoding as reading
    from tlcli.contract.images.find_images import Skipped, describe
    from tlcli.contract.maps.method_names import require_methods
    from tlcli.contract.maps.scorecam import is_score_cam
    from tlcli.service import Client

    options.check_map_flags(methods, wanted, softmax, max_channels)
    if as_json and as_lines:
        raise SettingsError("--json and --jsonl: one array at the end or a line an image, not both")
    console = Console(quiet)
    options.check_images(images)
    skipped: list[Skipped] = []
    found = reading.find(images, skipped)
    for line in describe(skipped):
        console.say(line)
    folder = OverlayFolder(overlays)
    answers: list[ImageAnswer] = []
    failed = 0
    with Client(host, port, **how) as client:
        info = client.get_model(model, version) if wanted or "all" in methods else None
        targets = class_targets(wanted, info.labels) if info is not None and wanted else ()
        if info is not None and "all" in methods:
            methods = require_methods(methods, [one.method for one in info.methods], f"model {info.model!r}")
        streams = [
            client.classify_stream(
                found,
                model=model,
                version=version,
                top_k=top_k,
                cam=method,
                classes=targets,
                map_format="overlay",
                softmax=softmax,
                max_channels=(max_channels or 0) if method is not None and is_score_cam(method) else 0,
            )
            for method in methods or (None,)
        ]
        with console.progress("Classifying", len(found)) as advance:
            for path, *streamed in zip(found, *streams, strict=True):
                try:
                    answer, *others = (one.result() for one in streamed)
                except (ImageError, RequestError) as error:
                    failed += 1
                    click.echo(printable(f"left out: {error}"), err=True)
                    if as_lines:
                        click.echo(json.dumps({"path": printable(str(path)), "error": printable(str(error))}, ensure_ascii=False))
                else:
                    written = [
                        folder.write(path, one.map.method, one.label, one.map.png)
                        for drawn in (answer, *others)
                        for one in drawn.predictions
                        if one.map is not None and one.map.png is not None
                    ]
                    ranked = tuple(Ranked(one.label, one.class_id, one.score) for one in answer.predictions if one.rank <= top_k)
                    answers.append(ImageAnswer(str(path), ranked, tuple(written)))
                    if as_lines:
                        click.echo(json.dumps(answers[-1].line(), ensure_ascii=False))
                advance(1)
    if csv_path is not None and answers:
        write_csv(csv_path, answers)
    if not as_lines:
        show([row for answer in answers for row in answer.rows()], columns(answers), as_json)
    if failed:
        click.echo(f"{failed} of {len(found)} images were refused", err=True)
        sys.exit(1)
