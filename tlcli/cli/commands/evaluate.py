"""`tlcli evaluate`: how good the answers of an exported model are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from tlcli.cli import options
from tlcli.cli.console import Console, show
from tlcli.cli.finetune_settings import check_data_dir
from tlcli.cli.parsing import Command

if TYPE_CHECKING:
    from tlcli.evaluation.accuracy import PartName

SUMMARY = "summary.json"


@click.command("evaluate", cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data")
@click.option(
    "--part",
    type=click.Choice(["train", "val", "test", "all"]),
    help="Which images of the data set.  [default: test, or all where there is no such part]",
)
@click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Where known data sets are kept.  [default: the cache]")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Images that the model is given at a time.")
@options.device_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("evaluate"),
    show_default=True,
    help="Folder for the results; where it holds something, the next free NAME-2, NAME-3.",
)
@options.json_option
@options.quiet_option
def command(
    model: Path, data: str, part: str | None, data_dir: Path | None, batch_size: int, device: str, out: Path, as_json: bool, quiet: bool
) -> None:
    """Measure how good a model's answers are, on labelled images.

    MODEL is a folder of the repository, such as models/NAME, or an ONNX file. DATA is a folder of images, a folder a class,
    or a known data set; its classes are found in the model by their names. What is measured is what is served: the file, on
    ONNX Runtime.

    Prints precision, recall and F1 of each class, and writes them with the confusion matrix, the calibration, every
    prediction, and the surest mistakes beside their maps (without maps, where the file has none).

    \b
    tlcli evaluate models/NAME PATH/TO/FOLDER
    """
    import torch

    from tlcli.contract.files.atomic_file import fresh_folder
    from tlcli.contract.files.display_name import printable
    from tlcli.contract.images.find_images import describe
    from tlcli.contract.maps.method_names import METHODS
    from tlcli.contract.model.onnx_model import Model
    from tlcli.evaluation.accuracy import classify, explained_by, find_labelled
    from tlcli.training.metrics.scores import score
    from tlcli.training.reports import figures
    from tlcli.training.runs.predictions import predictions, write_predictions
    from tlcli.training.settings.run_file_names import CONFUSION, MISTAKES, PREDICTIONS, RELIABILITY

    if data_dir is not None:
        check_data_dir(data)
    console = Console(quiet)
    file = options.require_model(model, [data])
    options.check_images([data])
    opened = Model.open(file, device)
    description = opened.description
    found = find_labelled(data, description, cast("PartName | None", part), data_dir, console.progress)
    for line in describe(found.skipped):
        console.say(line)
    for left in found.left_out:
        click.echo(printable(f"left out: {left.name}: {left.reason}"), err=True)
    logits = classify(opened, found.images, batch_size, console.progress)
    scores = score(logits, torch.from_numpy(found.images.labels), description.labels)

    out = fresh_folder(out)
    kind = "" if found.part == "all" else f"{found.part} "
    title = f"{description.name} on {kind or 'all '}images of {Path(found.where).name}"
    figures.draw_confusion(scores, title, out / CONFUSION)
    figures.draw_reliability(scores, title, out / RELIABILITY)
    explain, title_of_maps = None, ""
    if description.methods:
        method = next((name for name in description.methods if name.partition("@")[0] == "gradcam"), description.methods[0])
        explain, title_of_maps = explained_by(opened, method), METHODS[method.partition("@")[0]].title
    figures.draw_mistakes(explain, found.images, logits, description.labels, out / MISTAKES, kind.strip(), title_of_maps)
    write_predictions(out / PREDICTIONS, predictions(found.images, logits, description.labels))
    about = {
        "model": str(opened.path),
        "name": description.name,
        "data": data,
        "part": found.part,
        "left_out": [{"name": printable(left.name), "reason": left.reason} for left in found.left_out],
        "skipped": [{"name": printable(one.name), "reason": one.reason} for one in found.skipped],
    }
    _write_summary(out / SUMMARY, about | {"scores": scores.model_dump(mode="json")})
    rows = [{"class": one.label, **one.model_dump(exclude={"label"})} for one in scores.classes if one.count]
    show(rows, ["class", "count", "precision", "recall", "f1"], as_json)
    top5 = "" if scores.top5 is None else f", {scores.top5:.2%} among the first five"
    console.say(
        f"\n{scores.top1:.2%} of {scores.count:,} images right{top5}; macro F1 {scores.macro_f1:.4f}, loss {scores.loss:.4f},"
        f" expected calibration error {scores.calibration.ece:.2%}\nwritten: {out}. Look at {out / CONFUSION} and {out / MISTAKES}"
    )


def _write_summary(path: Path, document: dict[str, Any]) -> None:
    from tlcli.contract.files.atomic_file import whole_file

    with whole_file(path) as temporary:
        temporary.write_text(json.dumps({"format_version": 1, **document}, indent=1, ensure_ascii=False), encoding="utf-8")
