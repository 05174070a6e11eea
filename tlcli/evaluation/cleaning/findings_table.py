"""Table of findings as a CSV file, in which the user writes what to do with each image."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from tlcli.contract.files.atomic_file import whole_file
from tlcli.contract.files.display_name import csv_cell
from tlcli.evaluation.cleaning.findings import Finding
from tlcli.evaluation.cleaning.images import LabelledParts

COLUMNS = (
    "issue",
    "confident",
    "path",
    "label",
    "split",
    "score",
    "detail",
    "suggested_label",
    "neighbour",
    "neighbour_label",
    "neighbour_split",
    "action",
    "value",
)
"""Columns of the table. `action` and `value` are left for the user; see `tlcli.evaluation.cleaning.fixes`."""


def write_findings(path: Path, findings: Sequence[Finding], images: LabelledParts) -> None:
    """Write one row for each finding. The neighbour is the other image of a pair, or else the nearest image of another class.

    Raises:
        OSError: the file cannot be written.
    """
    part, splits = images.images, images.splits
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for finding in findings:
            neighbour = finding.twin if finding.twin is not None else next(iter(finding.others), None)
            of_neighbour = ("", "", "")
            if neighbour is not None:
                of_neighbour = (part.names[neighbour], images.classes[part.labels[neighbour]], splits[neighbour])
            cells = (
                part.names[finding.image],
                images.classes[part.labels[finding.image]],
                splits[finding.image],
                f"{finding.score:.6g}",
                finding.detail,
                "" if finding.suggested is None else images.classes[finding.suggested],
                *of_neighbour,
            )
            writer.writerow((finding.kind, "yes" if finding.confident else "", *map(csv_cell, cells), "", ""))
