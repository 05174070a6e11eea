"""Row of a label file, the file that it comes from, and the limits of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tlcli.contract.errors import DatasetError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
"""Suffixes of label files, in lower case."""

NAMED_SUFFIXES = ".csv, .tsv, .jsonl, .json or .parquet"
"""The suffixes as messages name them."""

MAX_ROWS = 20_000_000
MAX_BYTES = 8 * 1024**3
MAX_LINE = 1024 * 1024
"""Maximum length of a line or of an item of a JSON array, in characters."""

_MAX_PATH = 4096
_MAX_LABEL = 500


class LabelRow(NamedTuple):
    """Row of a label file.

    line: number of the line, the row or the item, from 1. path: path or URL of the image, as written.
    labels: labels of the image; empty for an image without one.
    split, group: as written; empty if the row has none. weight: weight of the image in the training loss.
    others: further places of the image, for exports that do not name the path themselves.
    """

    line: int
    path: str
    labels: tuple[str, ...]
    split: str = ""
    group: str = ""
    weight: float = 1.0
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelFile:
    """Label file on this machine.

    path: path of the file. where: name in messages, its path or URL. base: folder or URL from which relative image paths start.
    """

    path: Path
    where: str
    base: str

    def error(self, problem: str, line: int | None = None, unit: str = "line") -> DatasetError:
        """Return an error that names the file and, if it is known, the line."""
        return DatasetError(f"{self.where}: {problem}" if line is None else f"{self.where}: {unit} {line:,}: {problem}")


@dataclass(frozen=True)
class LabelRows:
    """Rows of a label file, read as they are iterated over.

    unit: what `LabelRow.line` counts: `line`, `row` or `item`. rows: iterator over the rows.
    partial: True for the export of a labelling tool, in which images without a label are not finished yet; False if a row without a label
        is a mistake.
    """

    unit: str
    rows: Iterator[LabelRow]
    partial: bool = False


def check_path(value: object) -> str:
    """Return the path of an image as text.

    Raises:
        ValueError: the value is not text, is empty, too long, or contains a NUL character; the message is one line.
    """
    if not isinstance(value, str):
        raise ValueError("no path" if value is None else f"path {shorten(value)}: expected text")
    if not value or value.isspace():
        raise ValueError("no path")
    if len(value) > _MAX_PATH:
        raise ValueError(f"a path of {len(value):,} characters: expected at most {_MAX_PATH:,}")
    if "\0" in value:
        raise ValueError("a NUL character in the path")
    return value


def check_label(text: str) -> str:
    """Return a label, without the spaces around it.

    Raises:
        ValueError: the label is too long, which happens when a column of texts is read as labels.
    """
    if len(text) > _MAX_LABEL:
        raise ValueError(f"a label of {len(text):,} characters: expected at most {_MAX_LABEL}: choose the column with --columns label=NAME")
    return text.strip()


def shorten(value: object) -> str:
    """Return a value for a message, on one line and at most 60 characters long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
