"""`tlcli predict`: an exported model on images, without a server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tlcli.cli import options
from tlcli.cli.answer_output import ImageAnswer, OverlayFolder, Ranked, class_targets, columns, write_csv
from tlcli.cli.console import Console, show
from tlcli.cli.parsing import Command

if TYPE_CHECKING:
    from tlcli.contract.images.preprocessing import Preprocessing
    from tlcli.contract.model.description import Description

BATCH = 8
"""Images at a time, of the size that the model was trained with; of larger ones fewer."""


@click.command("predict", cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--npz",
    "npz_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write raw scores, logits and maps.  [maps; maps_METHOD for several]",
)
@click.option("--image-size", type=click.IntRange(8, 4096), help="Height and width of the input, for a model that takes any.")
@options.answer_options
@options.device_option
@options.json_option
@options.quiet_option
def command(
    model: Path,
    images: tuple[Path, ...],
    methods: tuple[str, ...],
    wanted: tuple[str, ...],
    softmax: bool,
    max_channels: int | None,
    overlays: Path,
    csv_path: Path | None,
    npz_path: Path | None,
    image_size: int | None,
    top_k: int,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Ask an exported model about images, without a server.

    MODEL is a folder of the repository, such as models/NAME or models/NAME/1, or an ONNX file. IMAGES are
    files and folders. An image that cannot be read is named, the others are answered, and the exit code is 1.
    """
    import numpy as np

    from tlcli.contract.errors import ImageError, NotFoundError
    from tlcli.contract.files.display_name import printable
    from tlcli.contract.images import decoding as reading
    from tlcli.contract.images.find_images import Skipped, describe
    from tlcli.contract.images.heatmap import encode, overlay
    from tlcli.contract.maps.method_names import require_methods
    from tlcli.contract.model.explain import BATCH_SIZE, channels_to_score, explain
    from tlcli.contract.model.onnx_model import Model

    options.check_map_flags(methods, wanted, softmax, max_channels)
    console = Console(quiet)
    file = options.require_model(model, images)
    options.check_images(images)
    opened = Model.open(file, device)
    description = opened.description
    methods = require_methods(methods, description.methods, f"model {description.name!r}")
    targets = class_targets(wanted, description.labels)
    preprocessing = _preprocessing(description, image_size)
    share = description.preprocessing.height * description.preprocessing.width / (preprocessing.height * preprocessing.width)
    batch, masked = (max(1, int(size * min(1.0, share))) for size in (BATCH, BATCH_SIZE))
    channels = channels_to_score(description, methods, max_channels)
    steps = max(1, channels)  # of the progress, for each image
    folder = OverlayFolder(overlays)
    skipped: list[Skipped] = []
    found = reading.find(images, skipped)
    for line in describe(skipped):
        console.say(line)

    answers: list[ImageAnswer] = []
    raw: dict[str, list[np.ndarray]] = {"scores": [], "logits": [], "classes": []}
    failed = 0
    with console.progress("Scoring channels" if channels else "Classifying", len(found) * steps) as advance:
        for start in range(0, len(found), batch):
            readable = []
            for path in found[start : start + batch]:
                try:
                    readable.append((path, reading.read(path)))
                except (ImageError, NotFoundError) as error:
                    failed += 1
                    click.echo(printable(f"left out: {error}"), err=True)
                    advance(steps)
            if readable:
                inputs = np.stack([preprocessing.apply(image) for _, image in readable])
                answer = explain(
                    opened,
                    inputs,
                    targets,
                    methods,
                    softmax=softmax,
                    max_channels=max_channels,
                    batch_size=masked,
                    advance=advance if channels else None,
                )
                for row, (path, image) in enumerate(readable):
                    best = np.argsort(-answer.scores[row], kind="stable")[:top_k]
                    written = []
                    if methods and answer.classes is not None:
                        box = preprocessing.visible_box(*image.size)
                        for method in methods:
                            for k, class_id in enumerate(answer.classes[row].tolist()):
                                png = encode(overlay(image, answer.maps[method][row, k], box))
                                written.append(folder.write(path, method, description.labels[class_id], png))
                    ranked = tuple(Ranked(description.labels[i], int(i), float(answer.scores[row, i])) for i in best)
                    answers.append(ImageAnswer(str(path), ranked, tuple(written)))
                raw["scores"].append(answer.scores)
                raw["logits"].append(answer.logits)
                if methods and answer.classes is not None:
                    raw["classes"].append(answer.classes)
                    for method in methods:
                        raw.setdefault("maps" if len(methods) == 1 else f"maps_{method}", []).append(answer.maps[method])
                if not channels:
                    advance(len(readable))

    if answers:
        _keep(answers, raw, csv_path, npz_path)
    show([row for answer in answers for row in answer.rows()], columns(answers), as_json)
    if failed:
        click.echo(f"{failed} of {len(found)} images could not be read", err=True)
        sys.exit(1)


def _preprocessing(description: Description, image_size: int | None) -> Preprocessing:
    from tlcli.contract.errors import RequestError

    own = description.preprocessing
    if image_size is None or (own.height, own.width) == (image_size, image_size):
        return own
    if not description.dynamic_size:
        raise RequestError(
            f"--image-size {image_size}: model {description.name!r} takes images of {own.width} x {own.height} only (width x height)"
        )
    return own.model_copy(update={"height": image_size, "width": image_size})


def _keep(answers: list[ImageAnswer], raw: dict[str, list], csv_path: Path | None, npz_path: Path | None) -> None:  # type: ignore[type-arg]
    import numpy as np

    from tlcli.contract.files.atomic_file import whole_file
    from tlcli.contract.files.display_name import printable

    if csv_path is not None:
        write_csv(csv_path, answers)
    if npz_path is not None:
        arrays = {name: np.concatenate(parts) for name, parts in raw.items() if parts}
        with whole_file(npz_path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, paths=np.array([printable(answer.path) for answer in answers]), **arrays)
