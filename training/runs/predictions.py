"""What a network said of every image of a part, as a table."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from tlcli.contract.files.atomic_file import whole_file
from tlcli.contract.files.display_name import csv_cell
from tlcli.training.data.dataset import Part

Prediction = tuple[str, str, str, float]
"""An image's name, its class, the predicted class, and that one's score."""


def predictions(part: Part, logits: Tensor, classes: Sequence[str]) -> list[Prediction]:
    """A row an image.

    Args:
        part: n images.
        logits: `[n, C]`.
        classes: C names.
    """
    scores, predicted = logits.softmax(1).max(1)
    rows = zip(part.names, part.labels.tolist(), predicted.tolist(), scores.tolist(), strict=True)
    return [(name, classes[label], classes[guess], round(value, 6)) for name, label, guess, value in rows]


def write_predictions(path: Path, rows: Sequence[Prediction]) -> None:
    """As CSV, whole or not at all; names as `tlcli.contract.files.display_name.csv_cell` writes them.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "label", "predicted", "score"))
        writer.writerows((csv_cell(name), csv_cell(label), csv_cell(guess), value) for name, label, guess, value in rows)
