"""`tlcli classify`: classify images on a running server over gRPC."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tlcli.cli import options
from tlcli.cli.answer_output import ImageAnswer, OverlayFolder, Ranked, columns, write_csv
from tlcli.cli.console import Console, show
from tlcli.cli.parsing import Command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tlcli.contract.errors import TlcliError
    from tlcli.service import Classification, Client
    from tlcli.service.client.connection import ConnectionOptions


@click.command("classify", cls=Command)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", default="", help="Name of the model; required if the server holds several.")
@click.option("--version", default="", help="Version of the model.  [default: the latest]")
@options.answer_options
@options.server_options
@options.json_option
@click.option("--jsonl", "as_lines", is_flag=True, help="Print a JSON object per line, each as soon as its response arrives.")
@options.quiet_option
def command(
    images: tuple[Path, ...],
    model: str,
    version: str,
    cams: tuple[str, ...],
    classes: tuple[str, ...],
    softmax: bool,
    max_channels: int | None,
    output: Path,
    csv_path: Path | None,
    top_k: int,
    host: str,
    port: int | None,
    how: ConnectionOptions,
    as_json: bool,
    as_lines: bool,
    quiet: bool,
) -> None:
    """Classify images on a running server.

    IMAGES are files and folders; several are in flight at a time. An image that the server rejects is reported and skipped; the exit
    code is then 1.

    \b
    tlcli classify image.jpg --cam gradcam
    tlcli classify FOLDER --model NAME --jsonl
    """
    from tlcli.contract.errors import SettingsError, TlcliError
    from tlcli.contract.files.display_name import printable
    from tlcli.service import Client

    options.check_map_flags(cams, classes, softmax, max_channels)
    if as_json and as_lines:
        raise SettingsError("--json and --jsonl cannot be combined: use only one of them")
    console = Console(quiet)
    options.check_images(images)
    paths = options.find_images(images, console)
    folder = OverlayFolder(output)
    answers: list[ImageAnswer] = []
    with Client(host, port, **how) as client:
        methods, targets = _maps(client, model, version, cams, classes)
        outcomes = _classify(client, paths, model, version, top_k, methods, targets, softmax, max_channels)
        with console.progress("Classifying", len(paths)) as advance:
            for path, outcome in outcomes:
                if isinstance(outcome, TlcliError):
                    click.echo(printable(f"left out: {outcome}"), err=True)
                    line = {"path": printable(str(path)), "error": printable(str(outcome))}
                else:
                    answers.append(_image_answer(path, outcome, top_k if options.is_given_by_flag("top_k") else None, folder))
                    line = answers[-1].line()
                if as_lines:
                    click.echo(json.dumps(line, ensure_ascii=False))
                advance(1)
    if csv_path is not None and answers:
        write_csv(csv_path, answers)
    if not as_lines:
        show([row for answer in answers for row in answer.rows()], columns(answers), as_json)
    if failed := len(paths) - len(answers):
        click.echo(f"{failed} of {len(paths)} images were rejected", err=True)
        sys.exit(1)


def _maps(client: Client, model: str, version: str, cams: tuple[str, ...], classes: Sequence[str]) -> tuple[tuple[str, ...], Sequence[int]]:
    """Return the maps to request and the classes to explain.

    The model's description is fetched from the server only if classes are given or `all` is among the maps.
    """
    if not classes and "all" not in cams:
        return cams, ()
    from tlcli.contract.maps.method_names import require_methods
    from tlcli.contract.model.class_choice import class_targets

    info = client.get_model(model, version)
    methods = require_methods(cams, [output.method for output in info.methods], f"model {info.model!r}") if "all" in cams else cams
    return methods, class_targets(classes, info.labels, "--cam-class") if classes else ()


def _classify(
    client: Client,
    paths: Sequence[Path],
    model: str,
    version: str,
    top_k: int,
    methods: Sequence[str],
    targets: Sequence[int],
    softmax: bool,
    max_channels: int | None,
) -> Iterator[tuple[Path, list[Classification] | TlcliError]]:
    """Yield each image with its responses, one per map, or with its error. Each map is requested in a separate stream."""
    from tlcli.contract.errors import ImageError, RequestError
    from tlcli.contract.maps.scorecam import is_score_cam

    streams = [
        client.classify_stream(
            paths,
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
    for path, *streamed in zip(paths, *streams, strict=True):
        try:
            yield path, [answer.result() for answer in streamed]
        except (ImageError, RequestError) as error:
            yield path, error


def _image_answer(path: Path, classified: Sequence[Classification], top_k: int | None, folder: OverlayFolder) -> ImageAnswer:
    """Write the overlays of an image and return its response: the best classes, or the labels if `top_k` is None."""
    overlays = tuple(
        folder.write(path, prediction.map.method, prediction.label, prediction.map.png)
        for classification in classified
        for prediction in classification.predictions
        if prediction.map is not None and prediction.map.png is not None
    )
    first = classified[0]
    shown = [
        prediction
        for prediction in first.predictions
        if (prediction.assigned if first.task == "multi-label" and top_k is None else prediction.rank <= (top_k or 1))
    ]
    ranked = tuple(Ranked(prediction.label, prediction.class_id, prediction.score) for prediction in shown)
    return ImageAnswer(str(path), ranked, overlays)
