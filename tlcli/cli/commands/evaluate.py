"""`tlcli evaluate`: measure the accuracy of an exported model on labelled images."""

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
    from tlcli.training.metrics.multi_label import MultiLabelScores

SUMMARY = "summary.json"


@click.command("evaluate", cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data")
@click.option(
    "--part",
    type=click.Choice(["train", "val", "test", "all"]),
    help="Split of the data set.  [default: test, or all if there is no test split]",
)
@options.data_dir_option
@options.columns_option
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Images per run of the model.")
@options.device_option
@options.folder_option("evaluate", "Folder for the results. A number is appended if it is not empty, such as evaluate-2.")
@options.json_option
@options.quiet_option
def command(
    model: Path,
    data: str,
    part: str | None,
    data_dir: Path | None,
    columns: dict[str, str] | None,
    batch_size: int,
    device: str,
    output: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure the accuracy of an exported model on labelled images.

    MODEL is a model's folder, such as models/NAME, or an ONNX file. DATA is a folder with one folder of images per class, a label
    file such as labels.csv, or a known data set; its classes are matched to the model's by name. The model runs on ONNX Runtime, as
    it does when served.

    A model with several labels per image is evaluated at its thresholds, by the average precision of each label and their mean (mAP).

    Prints the precision, recall and F1 score of each class. Writes them to a folder, with the confusion matrix, the calibration, every
    prediction, and the most confident mistakes with their maps, if the model has maps.

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
    from tlcli.training.metrics.multi_label import score_labels
    from tlcli.training.metrics.scores import score
    from tlcli.training.reports import figures
    from tlcli.training.reports.label_figures import draw_label_mistakes
    from tlcli.training.runs.predictions import predictions, write_label_predictions, write_predictions
    from tlcli.training.settings.run_file_names import CONFUSION, MISTAKES, PREDICTIONS, RELIABILITY

    if data_dir is not None:
        check_data_dir(data)
    console = Console(quiet)
    file = options.require_model(model, [data])
    options.check_images([data])
    opened = Model.open(file, device)
    description = opened.description
    labelled = find_labelled(data, description, cast("PartName | None", part), data_dir, console.progress, columns)
    for line in describe(labelled.skipped):
        console.say(line)
    for note in labelled.notes:
        click.echo(f"warning: {note}", err=True)
    for left in labelled.left_out:
        click.echo(printable(f"left out: {left.name}: {left.reason}"), err=True)
    logits = classify(opened, labelled.images, batch_size, console.progress)
    truth = torch.from_numpy(labelled.images.labels)

    output = fresh_folder(output)
    kind = "" if labelled.part == "all" else f"{labelled.part} "
    title = f"{description.name} on {kind or 'all '}images of {Path(labelled.where).name}"
    explain, title_of_maps = None, ""
    if description.methods:
        method = next((name for name in description.methods if name.partition("@")[0] == "gradcam"), description.methods[0])
        explain, title_of_maps = explained_by(opened, method), METHODS[method.partition("@")[0]].title
    about = {
        "model": str(opened.path),
        "name": description.name,
        "data": data,
        "part": labelled.part,
        "left_out": [{"name": printable(left.name), "reason": left.reason} for left in labelled.left_out],
        "skipped": [{"name": printable(file.name), "reason": file.reason} for file in labelled.skipped],
    }
    if description.task == "multi-label":
        of_labels = score_labels(logits, truth, description.labels, description.thresholds)
        draw_label_mistakes(explain, labelled.images, logits, of_labels, output / MISTAKES, kind.strip(), title_of_maps)
        write_label_predictions(output / PREDICTIONS, labelled.images, logits, description.labels, description.thresholds)
        _write_summary(output / SUMMARY, about | {"scores": of_labels.model_dump(mode="json")})
        _show_labels(of_labels, as_json)
        console.say(
            f"\nmAP {of_labels.mean_ap:.4f} of {of_labels.count:,} images; at the thresholds macro F1 {of_labels.macro_f1:.4f}, all labels"
            f" right on {of_labels.exact_match:.2%}; loss {of_labels.loss:.4f}\nwritten: {output}; see {output / MISTAKES}"
        )
        return
    scores = score(logits, truth, description.labels)
    figures.draw_confusion(scores, title, output / CONFUSION)
    figures.draw_reliability(scores, title, output / RELIABILITY)
    figures.draw_mistakes(explain, labelled.images, logits, description.labels, output / MISTAKES, kind.strip(), title_of_maps)
    write_predictions(output / PREDICTIONS, predictions(labelled.images, logits, description.labels))
    _write_summary(output / SUMMARY, about | {"scores": scores.model_dump(mode="json")})
    rows = [{"class": row.label, **row.model_dump(exclude={"label"})} for row in scores.classes if row.count]
    show(rows, ["class", "count", "precision", "recall", "f1"], as_json)
    top5 = "" if scores.top5 is None else f", top-5 {scores.top5:.2%}"
    console.say(
        f"\ntop-1 {scores.top1:.2%} of {scores.count:,} images{top5}; macro F1 {scores.macro_f1:.4f}, loss {scores.loss:.4f},"
        f" expected calibration error {scores.calibration.ece:.2%}\nwritten: {output}; see {output / CONFUSION} and {output / MISTAKES}"
    )


def _show_labels(scores: MultiLabelScores, as_json: bool) -> None:
    rows = [{"class": row.label, **row.model_dump(exclude={"label"})} for row in scores.classes if row.count]
    show(rows, ["class", "count", "average_precision", "threshold", "precision", "recall", "f1"], as_json)


def _write_summary(path: Path, document: dict[str, Any]) -> None:
    from tlcli.contract.files.atomic_file import whole_file

    with whole_file(path) as temporary:
        temporary.write_text(json.dumps({"format_version": 1, **document}, indent=1, ensure_ascii=False), encoding="utf-8")
