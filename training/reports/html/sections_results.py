"""The sections of a report that say how the run went: figures, curves, classes, confusion, calibration, mistakes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from tlcli.training.engine.model_selection import RULE, describe_kept
from tlcli.training.reports.html.charts import data_uri, line_chart, matrix, reliability_chart
from tlcli.training.reports.html.markup import Child, element
from tlcli.training.reports.html.tables import CALLED, MANY_CLASSES, MOST_LISTED, bar, interval, key, missing, number, percent, table
from tlcli.training.runs.summary import Figures, Record
from tlcli.training.settings.run_file_names import METRICS, MISTAKES, PREDICTIONS

_MOST_MISTAKEN = 6
"""Pairs of classes that are listed."""


def figures(record: Record) -> Child:
    """All figures of each part."""
    rows = [
        [
            CALLED[name],
            f"{part.count:,}",
            f"{part.right:,}",
            percent(part.top1),
            interval(part),
            percent(part.top5),
            number(part.macro_f1),
            number(part.loss),
            percent(part.ece),
        ]
        for name, part in record.parts.items()
    ]
    kept = describe_kept(record.results.best_epoch, record.best_stage, record.config.asked.get("mode"))
    heads = ["part", "images", "right", "top-1", "95 % interval", "top-5", "macro F1", "loss", "ECE"]
    return (
        table(heads, rows, numbers_from=1),
        element(
            "p",
            f"The network of {kept}. It has {RULE}. The epoch was chosen on the validation part, so its figures there are a little better"
            " than on images that nobody has chosen by. Intervals: Wilson's, of chance in which images the part holds.",
            class_="soft small",
        ),
    )


def training(record: Record) -> Child:
    """The learning curves."""
    epochs, best = record.epochs, record.results.best_epoch
    if not epochs:
        return missing(METRICS)
    loss = line_chart("Cross-entropy", epochs, [one.train_loss for one in epochs], [one.val_loss for one in epochs], best)
    top1 = line_chart("Top-1", epochs, [100 * one.train_top1 for one in epochs], [100 * one.val_top1 for one in epochs], best, " %")
    return (
        key(("train", "training, as trained on (augmented, dropout on)"), ("val", "validation"), ("best", f"the best epoch, {best}")),
        element("div", element("div", loss), element("div", top1), class_="side"),
    )


def classes(record: Record) -> Child:
    """Precision, recall and F1 of each class, part by part."""
    parts = record.parts
    labels = [one.label for one in record.results.val.classes]
    heads = ["class", *(figure for _ in parts for figure in ("images", "precision", "recall", "F1"))]
    rows = []
    for index, label in enumerate(labels):
        cells: list[Child] = [element("td", label, class_="name")]
        for part in parts.values():
            one = part.classes[index]
            cells += [element("td", f"{one.count:,}", class_="number"), bar(one.precision), bar(one.recall), bar(one.f1)]
        rows.append(element("tr", cells))
    head = element(
        "thead",
        element("tr", element("th", class_="part"), [element("th", CALLED[part], colspan=4, class_="part") for part in parts]),
        element("tr", [element("th", name, class_="number" if at else None) for at, name in enumerate(heads)]),
    )
    by_class = element("table", head, element("tbody", rows), class_="wide")
    return (
        element(
            "p",
            "Precision: of the answers that name the class, those that are right. Recall: of the class's images, those that are found."
            " F1: their harmonic mean. A dash: the class was never answered, or has no images.",
            class_="soft small",
        ),
        element("div", by_class, class_="scroll tall" if len(labels) > MANY_CLASSES else "scroll"),
    )


def confusion(record: Record) -> Child:
    """The confusion matrices, plain and normalised by the true class, and the most frequent mistakes."""
    return [_confusion_of(CALLED[name], part) for name, part in record.parts.items()]


def _confusion_of(title: str, part: Figures) -> Child:
    counts = np.array(part.confusion, dtype=np.int64)
    labels = [one.label for one in part.classes]
    if counts.shape != (len(labels), len(labels)):
        return element("p", "The confusion matrix is not in results.json.", class_="soft")
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_MISTAKEN]
    pairs = [divmod(int(place), len(labels)) for place in order if wrong.flat[place]]
    rows = [
        [labels[true], labels[said], f"{counts[true, said]:,}", f"{100 * counts[true, said] / counts[true].sum():.1f} %"]
        for true, said in pairs
    ]
    most = table(["is", "was taken for", "images", "of its class"], rows, numbers_from=2) if rows else element("p", "No mistakes.")
    return (
        element("h3", f"{title}: the true class down, the predicted across"),
        element(
            "div",
            element("div", element("p", "Images", class_="small soft"), matrix(labels, counts, normalised=False)),
            element("div", element("p", "Per cent of the true class", class_="small soft"), matrix(labels, counts, normalised=True)),
            element("div", element("p", "Most frequent mistakes", class_="small soft"), most) if len(labels) > 2 else None,
            class_="side",
        ),
    )


def calibration(record: Record) -> Child:
    """How far the scores can be taken at their word."""
    charts = [
        element("div", reliability_chart(f"{CALLED[name]}: expected calibration error {percent(part.ece)}", part.calibration))
        for name, part in record.parts.items()
        if part.calibration is not None
    ]
    if not charts:
        return element("p", "Not in results.json: the run is of an earlier version.", class_="soft")
    return (
        element(
            "p",
            "Can the scores be taken at their word? Of all answers given with 80 %, 80 % should be right: bars should end at the"
            " red mark. The expected calibration error is the mean distance between the two, over the answers (Guo et al. 2017,"
            " arXiv:1706.04599).",
            class_="soft small",
        ),
        key(("right", "share of right answers"), ("score", "their mean score")),
        element("div", charts, class_="side"),
    )


def mistakes(record: Record) -> Child:
    """The contact sheet of the surest mistakes with their maps, and their names."""
    sheet = record.path / MISTAKES
    shown: Child = missing(MISTAKES)
    if sheet.is_file():
        says = "The surest mistakes on the validation part, each image beside its map"
        shown = element("figure", element("img", class_="sheet", src=_compressed(sheet), alt=says))
    wrong = sorted((one for one in record.predictions if one.label != one.predicted), key=lambda one: -one.score)
    rows = [[one.name, one.label, one.predicted, f"{100 * one.score:.1f} %"] for one in wrong[:MOST_LISTED]]
    if not record.predictions:
        listed: Child = missing(PREDICTIONS)
    elif not wrong:
        listed = element("p", f"None of the {len(record.predictions):,} validation images is answered wrongly.")
    else:
        listed = element(
            "details",
            element("summary", f"The surest {len(rows)} of {len(wrong):,} mistakes by name"),
            table(["image", "is", "was taken for", "score"], rows, numbers_from=3),
        )
    return shown, listed


def _compressed(sheet: Path) -> str:
    """A contact sheet as a JPEG in an address: as a PNG it would be most of the page."""
    file = io.BytesIO()
    with Image.open(sheet) as opened:
        opened.convert("RGB").save(file, "JPEG", quality=88)
    return data_uri(file.getvalue(), "image/jpeg")
