"""`tlcli predict`: classify images with an exported model, without a server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlcli.cli import options
from tlcli.cli.answer_output import ImageAnswer, OverlayFolder, Ranked, columns, write_csv
from tlcli.cli.console import Console, show
from tlcli.cli.parsing import Command

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from tlcli.predictor import Prediction


@click.command("predict", cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--npz",
    "npz_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write raw scores, logits and maps as NumPy arrays: `maps`, or `maps_METHOD` for several methods.",
)
@click.option("--image-size", type=click.IntRange(8, 4096), help="Height and width of the input, for a model with a dynamic size.")
@options.answer_options
@options.device_option
@options.json_option
@options.quiet_option
def command(
    model: Path,
    images: tuple[Path, ...],
    cams: tuple[str, ...],
    classes: tuple[str, ...],
    softmax: bool,
    max_channels: int | None,
    output: Path,
    csv_path: Path | None,
    npz_path: Path | None,
    image_size: int | None,
    top_k: int,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Classify images with an exported model, without a server.

    MODEL is a model's folder, such as models/NAME or models/NAME/1, or an ONNX file. IMAGES are files and folders. An image that
    cannot be read is reported and skipped; the exit code is then 1.

    A model with several labels per image shows every label whose score reaches its threshold, and explains each with a map of its own.

    \b
    tlcli predict models/NAME image.jpg --cam gradcam
    tlcli predict models/NAME FOLDER --top-k 5 --csv predictions.csv
    """
    from tlcli.contract.files.display_name import printable
    from tlcli.contract.maps.method_names import require_methods
    from tlcli.contract.model.class_choice import chosen_targets
    from tlcli.contract.model.onnx_model import Model
    from tlcli.image_source import ImageSource
    from tlcli.predictor import MapOptions, Predictor, Unreadable

    options.check_map_flags(cams, classes, softmax, max_channels)
    console = Console(quiet)
    file = options.require_model(model, images)
    options.check_images(images)
    opened = Model.open(file, device)
    description = opened.description
    methods = require_methods(cams, description.methods, f"model {description.name!r}")
    targets = chosen_targets(classes, description, "--cam-class")
    shows_labels = description.task == "multi-label" and not options.is_given_by_flag("top_k")
    predictor = Predictor(opened, MapOptions(methods, targets, softmax, max_channels), image_size, "--image-size")
    paths = options.find_images(images, console)
    folder = OverlayFolder(output)

    answers: list[ImageAnswer] = []
    predictions: list[Prediction] = []  # kept for the array file
    with console.progress("Scoring channels" if predictor.channels else "Classifying", len(paths) * predictor.steps) as advance:
        for outcome in predictor.predict([ImageSource(path, str(path)) for path in paths], advance):
            if isinstance(outcome, Unreadable):
                click.echo(printable(f"left out: {outcome.error}"), err=True)
                continue
            overlays = _write_overlays(outcome, description.labels, folder)
            ranking = outcome.assigned if shows_labels else outcome.ranking()[:top_k]
            ranked = tuple(Ranked(description.labels[class_id], class_id, float(outcome.scores[class_id])) for class_id in ranking)
            answers.append(ImageAnswer(outcome.source.name, ranked, overlays))
            if npz_path is not None:
                predictions.append(outcome.without_image())
    if answers and csv_path is not None:
        write_csv(csv_path, answers)
    if predictions and npz_path is not None:
        _write_arrays(npz_path, predictions)
    show([row for answer in answers for row in answer.rows()], columns(answers), as_json)
    if failed := len(paths) - len(answers):
        click.echo(f"{failed} of {len(paths)} images could not be read", err=True)
        sys.exit(1)


def _write_overlays(prediction: Prediction, labels: Sequence[str], folder: OverlayFolder) -> tuple[str, ...]:
    """Write an overlay for every map of an image and return the paths."""
    from tlcli.contract.images.heatmap import encode, overlay

    return tuple(
        folder.write(
            Path(prediction.source.name), method, labels[class_id], encode(overlay(prediction.image, values[index], prediction.box))
        )
        for method, values in prediction.maps.items()
        for index, class_id in enumerate(prediction.classes.tolist())
    )


def _padded(values: npt.NDArray[Any], length: int, fill: float) -> npt.NDArray[Any]:
    """Fill up the rows of an array, because images have different numbers of labels."""
    import numpy as np

    return np.concatenate([values, np.full((length - len(values), *values.shape[1:]), fill, dtype=values.dtype)])


def _write_arrays(path: Path, predictions: Sequence[Prediction]) -> None:
    import numpy as np

    from tlcli.contract.files.atomic_file import whole_file
    from tlcli.contract.files.display_name import printable

    arrays = {name: np.stack([getattr(prediction, name) for prediction in predictions]) for name in ("scores", "logits")}
    methods = list(predictions[0].maps)
    most = max(len(prediction.classes) for prediction in predictions)
    if methods:
        arrays["classes"] = np.stack([_padded(prediction.classes, most, -1) for prediction in predictions])
    for method in methods:
        maps = np.stack([_padded(prediction.maps[method], most, 0.0) for prediction in predictions])
        arrays["maps" if len(methods) == 1 else f"maps_{method}"] = maps
    names = np.array([printable(prediction.source.name) for prediction in predictions])
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, paths=names, **arrays)
