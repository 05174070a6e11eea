"""Output of answers, shared by `predict` and `classify`."""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tlcli.contract.files.atomic_file import fresh_folder, whole_file
from tlcli.contract.files.display_name import csv_cell, printable


@dataclass(frozen=True)
class Ranked:
    """One ranked class of an answer.

    score: probability of the class: a softmax, or a sigmoid with several labels per image.
    """

    label: str
    class_id: int
    score: float


@dataclass(frozen=True)
class ImageAnswer:
    """Answer for one image.

    ranked: best classes, best first.
    overlays: paths of the PNG files written for the image.
    """

    path: str
    ranked: tuple[Ranked, ...]
    overlays: tuple[str, ...] = field(default=())

    def rows(self) -> Iterable[dict[str, Any]]:
        """Yield one row per class. An image to which no label is assigned has a row without a label."""
        if not self.ranked:
            yield {"path": self.path, "label": None, "class_id": None, "score": None}
        for rank, ranked in enumerate(self.ranked, start=1):
            row: dict[str, Any] = {"path": self.path, "label": ranked.label, "class_id": ranked.class_id, "score": ranked.score}
            if len(self.ranked) > 1:
                row["rank"] = rank
            if self.overlays and rank == 1:
                row["overlays"] = list(self.overlays)
            yield row

    def line(self) -> dict[str, Any]:
        """Return the entire answer as a JSON-serializable object."""
        predictions = [{"label": ranked.label, "class_id": ranked.class_id, "score": ranked.score} for ranked in self.ranked]
        return {
            "path": printable(self.path),
            "predictions": predictions,
            **({"overlays": list(map(printable, self.overlays))} if self.overlays else {}),
        }


def write_csv(path: Path, answers: Sequence[ImageAnswer]) -> None:
    """Write a CSV file with the columns `path,label,class_id,score` and one row per image.

    With several classes per image, the file has one row per class and an additional column with the rank.
    """
    with_rank = any(len(answer.ranked) > 1 for answer in answers)
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *(["rank"] if with_rank else []), "label", "class_id", "score"])
        for answer in answers:
            if not answer.ranked:
                writer.writerow([csv_cell(answer.path), *([""] if with_rank else []), "", "", ""])
            for rank, ranked in enumerate(answer.ranked, start=1):
                cells = [csv_cell(ranked.label), ranked.class_id, f"{ranked.score:.6f}"]
                writer.writerow([csv_cell(answer.path), *([rank] if with_rank else []), *cells])


def columns(answers: Sequence[ImageAnswer]) -> list[str]:
    """Return the names of the columns that a table of the answers needs."""
    names = ["path", "label", "class_id", "score"]
    if any(len(answer.ranked) > 1 for answer in answers):
        names.insert(1, "rank")
    if any(answer.overlays for answer in answers):
        names.append("overlays")
    return names


_LONGEST_STEM = 50
"""Maximum number of characters of the image's name, and of the label, in an overlay's file name. A character can take four bytes, and file
systems limit a name to 255 bytes."""


class OverlayFolder:
    """Output folder for overlays, which are named after their images.

    The folder is new, so no overlay overwrites another one from this command or from an earlier one.
    """

    def __init__(self, folder: Path) -> None:
        self._requested = folder
        self._names: set[str] = set()

    @functools.cached_property
    def folder(self) -> Path:
        """Path of the folder, which is created when the first overlay is written; see `tlcli.contract.files.atomic_file.fresh_folder`."""
        return fresh_folder(self._requested)

    def write(self, image: Path, method: str, label: str, png: bytes) -> str:
        """Write an overlay under a unique name and return its path."""
        base = f"{image.stem[:_LONGEST_STEM]}.{method}.{re.sub(r'[^A-Za-z0-9_-]+', '-', label)[:_LONGEST_STEM]}"
        name, number = base, 1
        while name in self._names:
            number += 1
            name = f"{base}.{number}"
        self._names.add(name)
        with whole_file(self.folder / f"{name}.png") as temporary:
            temporary.write_bytes(png)
        return str(self.folder / f"{name}.png")
