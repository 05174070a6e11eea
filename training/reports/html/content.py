"""Content of the HTML report: the values, tables and charts inserted into its templates."""

from __future__ import annotations

import io
import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tlcli.training.engine.model_selection import describe_kept, rule_of
from tlcli.training.metrics.headline import why_macro_recall
from tlcli.training.reports.datasheet import DataSheet, Groups, NearCopy, Origin
from tlcli.training.reports.html.charts import data_uri, line_chart, matrix_image, reliability_chart
from tlcli.training.reports.html.formats import duration, interval, number, percent, plain
from tlcli.training.runs.reproduce_command import finetune_words
from tlcli.training.runs.summary import AnyScores, RunSummary
from tlcli.training.settings import run_file_names
from tlcli.training.settings.config import FinetuneConfig
from tlcli.training.settings.run_file_names import MISTAKES, SPLIT

PART_NAMES = {"train": "Training", "val": "Validation", "test": "Test"}

MOST_LISTED = 20
"""Maximum number of rows in a list of images."""

MANY_CLASSES = 12
"""Maximum number of classes in a table without its own scroll area."""

_MOST_MISTAKEN = 6
"""Maximum number of rows in the table of confused classes."""

_MOST_IN_TABLE = 20
"""Maximum number of classes for which a confusion matrix is a table. With more, it is an image with one pixel per cell."""


def report_content(record: RunSummary, sheet: DataSheet | None) -> dict[str, Any]:
    """Return the template variables of the report.

    Args:
        record: summary of the run.
        sheet: data sheet of the run; None if there is none.
    """
    asked, results = record.config.asked, record.results
    parts = {PART_NAMES[name]: part for name, part in record.parts.items()}
    label_parts = {PART_NAMES[name]: part for name, part in record.multi_label_parts.items()}
    return {
        "record": record,
        "sheet": sheet,
        "parts": parts,
        "label_parts": label_parts,
        "files": run_file_names,
        "folder": record.path.resolve().name,
        "title": f"{asked.get('backbone', 'A network')} on {Path(str(asked.get('dataset', 'images'))).name}",
        "subtitle": _subtitle(record),
        "warnings": [
            *([f"training ended early: {results.stopped}"] if results.stopped else ()),
            *(sheet.warnings if sheet is not None else ()),
        ],
        "headline": [*parts.items(), *label_parts.items()][-1],  # the test part, if there is one
        "why_macro_recall": why_macro_recall(_counts(record, sheet).get("train", {})),
        "image_counts": ", ".join(f"{count:,} {name}" for name, count in results.images.items()),
        "epoch_note": _epoch_note(record),
        "figures": [_figures_row(name, part) for name, part in parts.items()],
        "kept": describe_kept(results.best_epoch, record.best_stage, asked.get("mode")),
        "rule": rule_of(record.task),
        "curves": _curves(record),
        "many_classes": MANY_CLASSES,
        "most_listed": MOST_LISTED,
        "confusions": {name: _confusion(part) for name, part in parts.items()},
        "reliability": [
            reliability_chart(f"{name}: expected calibration error {percent(part.ece)}", part.calibration)
            for name, part in parts.items()
            if part.calibration is not None
        ],
        "contact_sheet": _contact_sheet(record.path / MISTAKES),
        **_mistakes(record),
        **_data(record, sheet),
        **_settings(record),
        "command": [shlex.quote(word) for word in finetune_words(asked)],
    }


def _subtitle(record: RunSummary) -> str:
    asked, created = record.config.asked, record.config.created.replace("T", " ").replace("+00:00", " UTC")
    mode = {"feature-extraction": "head trained on frozen features", "full": "all layers trained"}.get(str(asked.get("mode")), "")
    if asked.get("mode") == "full" and record.best_stage == "head":
        mode = "all layers trained, an epoch of the head alone kept"
    facts = (mode, f"head {asked.get('head', '?')}", f"{len(record.config.classes)} classes", created)
    return " · ".join(fact for fact in facts if fact)


def _epoch_note(record: RunSummary) -> str:
    last = max((epoch.epoch for epoch in record.epochs), default=None)
    stage = {"head": "head alone", "full": "all layers"}.get(record.best_stage or "", "")
    return ", ".join(filter(None, ("" if last is None else f"of {last}", stage)))


def _figures_row(name: str, part: AnyScores) -> list[str]:
    return [
        name,
        f"{part.count:,}",
        f"{part.right:,}",
        percent(part.top1),
        interval(part),
        percent(part.top5),
        number(part.macro_f1),
        number(part.loss),
        percent(part.ece),
    ]


def _curves(record: RunSummary) -> list[str]:
    """Return charts of the loss and the top-1 accuracy or mAP over the epochs; an empty list if the run has no metrics file."""
    epochs, best = record.epochs, record.results.best_epoch
    if not epochs:
        return []
    losses = [row.train_loss for row in epochs], [row.val_loss for row in epochs]
    if record.task == "multi-label":
        mean_ap = [100 * (row.val_mean_ap or 0.0) for row in epochs]
        return [
            line_chart("Binary cross-entropy", epochs, *losses, best),
            line_chart("mAP", epochs, [math.nan for _ in epochs], mean_ap, best, " %"),
        ]
    return [
        line_chart("Cross-entropy", epochs, *losses, best),
        line_chart("Top-1", epochs, [100 * row.train_top1 for row in epochs], [100 * row.val_top1 for row in epochs], best, " %"),
    ]


@dataclass(frozen=True)
class Cell:
    """Cell of a confusion matrix.

    text: content of the cell. kind: CSS class. style: inline CSS that sets the colour.
    """

    text: str
    kind: str
    style: str


@dataclass(frozen=True)
class Matrix:
    """Confusion matrix as rows of cells, or as an image (a data URI) if there are many classes."""

    labels: list[str]
    rows: list[list[Cell]]
    image: str | None = None


@dataclass(frozen=True)
class Confusion:
    """Confusion matrices of a part.

    counts: matrix of counts. shares: matrix of percentages of the true class. mistakes: table rows of the most frequent mistakes.
    """

    counts: Matrix
    shares: Matrix
    mistakes: list[list[str]]


def _confusion(part: AnyScores) -> Confusion | None:
    """Return the confusion matrices of a part; None if the run did not record them."""
    counts = np.array(part.confusion, dtype=np.int64)
    labels = [scores.label for scores in part.classes]
    if counts.shape != (len(labels), len(labels)):
        return None
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_MISTAKEN]
    pairs = [divmod(int(index), len(labels)) for index in order if wrong.flat[index]]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    mistakes = [
        [labels[true], labels[predicted], f"{counts[true, predicted]:,}", f"{100 * shares[true, predicted]:.1f} %"]
        for true, predicted in pairs
    ]
    return Confusion(
        counts=_matrix(labels, counts / max(1, int(counts.max(initial=0))), counts.astype(str).tolist()),
        shares=_matrix(labels, shares, [[f"{100 * share:.1f}" if share else "0" for share in row] for row in shares]),
        mistakes=mistakes,
    )


def _matrix(labels: list[str], strengths: npt.NDArray[np.float64], texts: list[list[str]]) -> Matrix:
    """Build a matrix whose cells are coloured by `strengths`, `[C, C]` in [0, 1]."""
    if len(labels) > _MOST_IN_TABLE:
        return Matrix(labels, [], matrix_image(strengths))
    rows = [
        [_cell(text, strength) for text, strength in zip(row, row_strengths, strict=True)]
        for row, row_strengths in zip(texts, strengths.tolist(), strict=True)
    ]
    return Matrix(labels, rows)


def _cell(text: str, strength: float) -> Cell:
    if strength == 0:
        return Cell(text, "none", "")
    return Cell(text, "full" if strength > 0.55 else "", f"background: rgb(var(--heat) / {max(0.06, strength):.3g})")


def _contact_sheet(path: Path) -> str | None:
    """Return the contact sheet as a JPEG data URI, or None if the file does not exist.

    JPEG is used because a PNG would make up most of the page.
    """
    if not path.is_file():
        return None
    file = io.BytesIO()
    with Image.open(path) as opened:
        opened.convert("RGB").save(file, "JPEG", quality=88)
    return data_uri(file.getvalue(), "image/jpeg")


def _mistakes(record: RunSummary) -> dict[str, Any]:
    wrong = [row for row in record.predictions if row.label != row.predicted]
    if record.task == "multi-label":
        listed = [[row.name, *(", ".join(labels.split("|")) or "none" for labels in (row.label, row.predicted))] for row in wrong]
        return {"mistakes": listed[:MOST_LISTED], "mistake_count": len(wrong)}
    wrong.sort(key=lambda row: -row.score)
    rows = [[row.name, row.label, row.predicted, f"{100 * row.score:.1f} %"] for row in wrong[:MOST_LISTED]]
    return {"mistakes": rows, "mistake_count": len(wrong)}


def _data(record: RunSummary, sheet: DataSheet | None) -> dict[str, Any]:
    """Return the tables about the data set. Without a data sheet, only the image counts from the saved split are available."""
    counts = _counts(record, sheet)
    classes = list(next(iter(counts.values()))) if counts else []
    rows = [[name, *(f"{by_class.get(name, 0):,}" for by_class in counts.values())] for name in classes]
    if rows:
        rows.append(["labels" if record.task == "multi-label" else "all", *(f"{sum(by_class.values()):,}" for by_class in counts.values())])
    return {
        "column_names": [PART_NAMES.get(part, part).lower() for part in counts],
        "class_counts": rows,
        "size_rows": [] if sheet is None or sheet.sizes is None else _size_rows(sheet),
        "facts": [] if sheet is None else _facts(sheet),
        "near_duplicates": [] if sheet is None else [_near_copy(copy) for copy in sheet.near_duplicates[:MOST_LISTED]],
        "unreadable": [] if sheet is None else [[image.name, image.reason] for image in sheet.left_out[:MOST_LISTED]],
        "skipped": []
        if sheet is None
        else [[path.name, "folder" if path.is_folder else "file", path.reason] for path in sheet.skipped[:MOST_LISTED]],
    }


def _near_copy(copy: NearCopy) -> list[str]:
    images = (copy.image, copy.other)
    return [*(text for image in images for text in (image.name, image.part, image.label)), f"{copy.similarity:.3f}"]


def _size_rows(sheet: DataSheet) -> list[list[str]]:
    assert sheet.sizes is not None
    return [
        [name, f"{spread.smallest:,}", f"{spread.median:,.0f}", f"{spread.largest:,}"]
        for name, spread in (("width", sheet.sizes.width), ("height", sheet.sizes.height))
    ]


def _facts(sheet: DataSheet) -> list[tuple[str, str]]:
    return [
        ("data set", sheet.dataset),
        ("largest class over smallest", f"{sheet.imbalance:.3g} (training part)"),
        ("contents that occur more than once", f"{sheet.duplicate_contents:,}"),
        ("of them with different labels", f"{sheet.contradictions:,}"),
        *(
            (f"{PART_NAMES[overlap.of].lower()} images also in {PART_NAMES[overlap.also_in].lower()}", f"{overlap.images:,}")
            for overlap in sheet.overlaps
        ),
        *([] if sheet.near_duplicate_count is None else [("nearly the same in two parts", f"{sheet.near_duplicate_count:,}")]),
        ("left out, unreadable", f"{len(sheet.left_out):,}"),
        ("left out, not an image or class", f"{sheet.skipped_count:,}"),
        ("of a single colour", f"{sheet.near_uniform_count:,}"),
        *((("folders", sheet.layout),) if sheet.layout else ()),
        *((("groups kept together", _describe_groups(sheet.groups)),) if sheet.groups is not None else ()),
        *((("weights of images", f"{sheet.weights.smallest:g} to {sheet.weights.largest:g}"),) if sheet.weights is not None else ()),
        *(_origin_facts(sheet.origin) if sheet.origin is not None else ()),
        ("fingerprint", sheet.fingerprint),
    ]


def _origin_facts(origin: Origin) -> list[tuple[str, str]]:
    classes = (("kept", origin.kept), ("new", origin.new), ("dropped", origin.dropped))
    facts = [("started from the run", origin.run), *((f"its classes, {word}", ", ".join(names)) for word, names in classes if names)]
    if origin.known is not None:
        facts.append(("training images that it had seen", f"{origin.known['train']:,}"))
    return facts


def _describe_groups(groups: Groups) -> str:
    counts = ", ".join(f"{count:,} {PART_NAMES[part].lower()}" for part, count in groups.parts.items())
    return f"{counts} (column {groups.column})"


def _counts(record: RunSummary, sheet: DataSheet | None) -> dict[str, dict[str, int]]:
    """Return the number of images by part and class; empty if neither the data sheet nor the saved split can be read."""
    return sheet.images if sheet is not None else _counts_of_split(record)


def _counts_of_split(record: RunSummary) -> dict[str, dict[str, int]]:
    """Return the number of images by part and class from the saved split; empty if the split cannot be read."""
    try:
        split = json.loads((record.path / SPLIT).read_bytes())
        return {part: {name: len(names) for name, names in by_class.items()} for part, by_class in split["parts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _settings(record: RunSummary) -> dict[str, Any]:
    """Return the settings with their given or resolved values, the values of the plan, and the durations."""
    config, resolved = record.config, record.settings
    defaults = FinetuneConfig().model_dump(mode="json")
    preprocessing = config.network.get("preprocessing") or {}
    return {
        "settings": [
            {
                "name": name,
                "value": resolved[name],
                "changed": value not in (None, defaults.get(name)),
                "resolved": value is None,
            }
            for name, value in config.asked.items()
            if resolved[name] is not None
        ],
        "resolved": [(name, plain(value)) for name, value in {**config.plan, **preprocessing, "device": config.device}.items()],
        "durations": [(name, duration(value)) for name, value in record.results.seconds.items()],
    }
