"""Table of predictions for every image of a part."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from tlcli.contract.files.atomic_file import whole_file
from tlcli.contract.files.display_name import csv_cell
from tlcli.training.data.dataset import Part

Prediction = tuple[str, str, str, float]
"""Prediction for an image: image name, true class, predicted class, and score of the predicted class."""


def predictions(part: Part, logits: Tensor, classes: Sequence[str]) -> list[Prediction]:
    """Return the predictions for a part, one row per image.

    Args:
        part: part with n images.
        logits: logits of the part, `[n, C]`.
        classes: names of the C classes.
    """
    scores, predicted = logits.softmax(1).max(1)
    rows = zip(part.names, part.labels.tolist(), predicted.tolist(), scores.tolist(), strict=True)
    return [(name, classes[label], classes[prediction], round(value, 6)) for name, label, prediction, value in rows]


def write_label_predictions(path: Path, part: Part, logits: Tensor, classes: Sequence[str], thresholds: Sequence[float]) -> None:
    """Write the predictions for a part with several labels per image to a CSV file atomically, one row per image.

    The columns `label` and `predicted` hold labels separated by vertical bars, and a column per class its score.

    Args:
        path: output path.
        part: part with n images.
        logits: logits of the part, `[n, C]`.
        classes: names of the C classes.
        thresholds: score of each class from which on it is assigned.

    Raises:
        OSError: the file cannot be written.
    """
    scores = logits.double().sigmoid()
    assigned = (scores >= scores.new_tensor(thresholds)).tolist()
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "label", "predicted", *(csv_cell(f"score {name}") for name in classes)))
        for index, (name, row) in enumerate(zip(part.names, scores.tolist(), strict=True)):
            predicted = [class_name for class_name, is_assigned in zip(classes, assigned[index], strict=True) if is_assigned]
            cells = (csv_cell("|".join(names)) for names in (part.labels_of(index, classes), predicted))
            writer.writerow((csv_cell(name), *cells, *(round(value, 6) for value in row)))


def write_predictions(path: Path, rows: Sequence[Prediction]) -> None:
    """Write predictions to a CSV file atomically. Names are encoded with `tlcli.contract.files.display_name.csv_cell`.

    Raises:
        OSError: the file cannot be written.
    """
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "label", "predicted", "score"))
        writer.writerows((csv_cell(name), csv_cell(label), csv_cell(predicted), score) for name, label, predicted, score in rows)
