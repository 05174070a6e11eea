"""Answers about images as `predict` and `classify` print and keep them."""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tlcli.contract.errors import RequestError
from tlcli.contract.files.atomic_file import fresh_folder, whole_file
from tlcli.contract.files.display_name import csv_cell, printable
from tlcli.contract.model.labels import LabelIndex


@dataclass(frozen=True)
class Ranked:
    """One class of one answer."""

    label: str
    class_id: int
    score: float


@dataclass(frozen=True)
class ImageAnswer:
    """What a model said of one image.

    ranked: the best classes, best first.
    overlays: the PNG files written for it.
    """

    path: str
    ranked: tuple[Ranked, ...]
    overlays: tuple[str, ...] = field(default=())

    def rows(self) -> Iterable[dict[str, Any]]:
        """A row a class."""
        for rank, one in enumerate(self.ranked, start=1):
            row: dict[str, Any] = {"path": self.path, "label": one.label, "class_id": one.class_id, "score": one.score}
            if len(self.ranked) > 1:
                row["rank"] = rank
            if self.overlays and rank == 1:
                row["overlays"] = list(self.overlays)
            yield row

    def line(self) -> dict[str, Any]:
        """All of it as one object."""
        predictions = [{"label": one.label, "class_id": one.class_id, "score": one.score} for one in self.ranked]
        return {
            "path": printable(self.path),
            "predictions": predictions,
            **({"overlays": list(map(printable, self.overlays))} if self.overlays else {}),
        }


def write_csv(path: Path, answers: Sequence[ImageAnswer]) -> None:
    """Write `path,label,class_id,score`, a row an image; where there are several classes an image, a row a class, with its rank."""
    ranked = any(len(answer.ranked) > 1 for answer in answers)
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *(["rank"] if ranked else []), "label", "class_id", "score"])
        for answer in answers:
            for rank, one in enumerate(answer.ranked, start=1):
                writer.writerow([csv_cell(answer.path), *([rank] if ranked else []), csv_cell(one.label), one.class_id, f"{one.score:.6f}"])


def columns(answers: Sequence[ImageAnswer]) -> list[str]:
    """Of the table: what the answers hold."""
    names = ["path", "label", "class_id", "score"]
    if any(len(answer.ranked) > 1 for answer in answers):
        names.insert(1, "rank")
    if any(answer.overlays for answer in answers):
        names.append("overlays")
    return names


def class_targets(wanted: Sequence[str], labels: Sequence[str]) -> tuple[int, ...]:
    """Turn `--cam-class` into targets: a label, a class id, or -r for the r-th ranked. None: the first ranked.

    Raises:
        RequestError: none of these, or a label that several classes have.
    """
    targets, index = [], LabelIndex(labels)
    for text in wanted:
        ids = index.find(text)
        if len(ids) > 1:
            raise RequestError(f"--cam-class {text!r}: {len(ids)} classes have this label: give one of the ids {', '.join(map(str, ids))}")
        if ids:
            targets.append(ids[0])
        elif re.fullmatch(r"-?\d+", text) and -len(labels) <= int(text) < len(labels):
            targets.append(int(text))
        else:
            some = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
            raise RequestError(
                f"--cam-class {text!r}: no such class; expected a label ({some}), an id from 0 to {len(labels) - 1},"
                " or -r for the r-th ranked"
            )
    return tuple(targets) or (-1,)


_LONGEST_STEM = 50
"""Characters of the image's name in an overlay's name, of up to four bytes each: file systems take 255 bytes for a name."""


class OverlayFolder:
    """Names overlays after their images, in a fresh folder, so that none writes over another: of this call or an earlier one."""

    def __init__(self, folder: Path) -> None:
        self._asked = folder
        self._taken: set[str] = set()

    @functools.cached_property
    def folder(self) -> Path:
        """The folder, made when the first overlay is written, see `tlcli.contract.files.atomic_file.fresh_folder`."""
        return fresh_folder(self._asked)

    def write(self, image: Path, method: str, label: str, png: bytes) -> str:
        """Write one overlay and return its path."""
        base = f"{image.stem[:_LONGEST_STEM]}.{method}.{re.sub(r'[^A-Za-z0-9_-]+', '-', label)[:_LONGEST_STEM]}"
        name, number = base, 1
        while name in self._taken:
            number += 1
            name = f"{base}.{number}"
        self._taken.add(name)
        with whole_file(self.folder / f"{name}.png") as temporary:
            temporary.write_bytes(png)
        return str(self.folder / f"{name}.png")
