"""Answers as `predict` and `classify` print and write them."""

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
    """One class of one answer. score: softmax probability."""

    label: str
    class_id: int
    score: float


@dataclass(frozen=True)
class ImageAnswer:
    """Answer about one image.

    ranked: the best classes, best first.
    overlays: PNG files written for it.
    """

    path: str
    ranked: tuple[Ranked, ...]
    overlays: tuple[str, ...] = field(default=())

    def rows(self) -> Iterable[dict[str, Any]]:
        """Yield a row per class."""
        for rank, ranked in enumerate(self.ranked, start=1):
            row: dict[str, Any] = {"path": self.path, "label": ranked.label, "class_id": ranked.class_id, "score": ranked.score}
            if len(self.ranked) > 1:
                row["rank"] = rank
            if self.overlays and rank == 1:
                row["overlays"] = list(self.overlays)
            yield row

    def line(self) -> dict[str, Any]:
        """Return the whole answer as one JSON object."""
        predictions = [{"label": ranked.label, "class_id": ranked.class_id, "score": ranked.score} for ranked in self.ranked]
        return {
            "path": printable(self.path),
            "predictions": predictions,
            **({"overlays": list(map(printable, self.overlays))} if self.overlays else {}),
        }


def write_csv(path: Path, answers: Sequence[ImageAnswer]) -> None:
    """Write `path,label,class_id,score`, a row per image; with several classes per image, a row per class with its rank."""
    with_rank = any(len(answer.ranked) > 1 for answer in answers)
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *(["rank"] if with_rank else []), "label", "class_id", "score"])
        for answer in answers:
            for rank, ranked in enumerate(answer.ranked, start=1):
                cells = [csv_cell(ranked.label), ranked.class_id, f"{ranked.score:.6f}"]
                writer.writerow([csv_cell(answer.path), *([rank] if with_rank else []), *cells])


def columns(answers: Sequence[ImageAnswer]) -> list[str]:
    """Return the columns that a table of the answers fills."""
    names = ["path", "label", "class_id", "score"]
    if any(len(answer.ranked) > 1 for answer in answers):
        names.insert(1, "rank")
    if any(answer.overlays for answer in answers):
        names.append("overlays")
    return names


_LONGEST_STEM = 50
"""Characters of the image's name in an overlay's name, of up to four bytes each: file systems take 255 bytes for a name."""


class OverlayFolder:
    """Fresh folder of overlays, named after their images: no overlay replaces another, of this command or of an earlier one."""

    def __init__(self, folder: Path) -> None:
        self._requested = folder
        self._names: set[str] = set()

    @functools.cached_property
    def folder(self) -> Path:
        """The folder, created when the first overlay is written, see `tlcli.contract.files.atomic_file.fresh_folder`."""
        return fresh_folder(self._requested)

    def write(self, image: Path, method: str, label: str, png: bytes) -> str:
        """Write one overlay and return its path."""
        base = f"{image.stem[:_LONGEST_STEM]}.{method}.{re.sub(r'[^A-Za-z0-9_-]+', '-', label)[:_LONGEST_STEM]}"
        name, number = base, 1
        while name in self._names:
            number += 1
            name = f"{base}.{number}"
        self._names.add(name)
        with whole_file(self.folder / f"{name}.png") as temporary:
            temporary.write_bytes(png)
        return str(self.folder / f"{name}.png")
