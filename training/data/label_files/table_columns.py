"""Columns of a label table: which of them holds paths, labels, splits, groups and weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tlcli.contract.images.find_images import SUFFIXES
from tlcli.training.data.label_files.label_row import LabelFile

_PATHS = ("path", "file_name", "filename")
"""Names of the path's column: ours, that of Hugging Face's `metadata.csv`, and that of Roboflow's `_classes.csv`."""

_ZEROS_AND_ONES = frozenset({"0", "1", "0.0", "1.0"})

_LISTED = 20


@dataclass(frozen=True)
class TableColumns:
    """Names of the columns to read.

    path, label, split, group, weight: names of columns; None for a column that the table does not have.
    separated: True if a cell of `label` holds several labels, as in `a|b|c`.
    one_hot: columns with a 0 or 1 for each class, named after it; then there is no `label`.
    """

    path: str
    label: str | None
    split: str | None
    group: str | None
    weight: str | None
    separated: bool = False
    one_hot: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str | None, ...]:
        """Columns in the order in which `RowParser.parse` takes their cells."""
        return (self.path, self.label, self.split, self.group, self.weight, *self.one_hot)


def find_columns(
    names: Sequence[str], first: Sequence[object], chosen: Mapping[str, str], file: LabelFile, line: int | None = None
) -> TableColumns:
    """Find the columns of a table by their names, which are matched exactly and then ignoring case.

    A table without a column of labels is one-hot if all its other columns hold a 0 or a 1 for the first image, as in Kaggle's and
    Roboflow's CSV files.

    Args:
        names: names of the columns, without spaces around them.
        first: cells of the first row; empty if there is none.
        chosen: names of columns given by the user, such as `{"path": "file"}`.
        file: file that the table is in.
        line: line of the names; None if they are not in a line.

    Raises:
        DatasetError: a column is missing, occurs twice, or was chosen for two purposes.
    """
    header = _Header(names, chosen, file, line)
    split, group, weight = (header.find(field) for field in ("split", "group", "weight"))
    label, separated = header.find("label"), False
    if label is None or ("labels" in chosen and "label" not in chosen):
        several = header.find("labels")
        label, separated = (several, True) if several is not None else (label, False)
    elif header.find("labels") is not None and "label" not in chosen:
        raise header.error("both a column label and a column labels", "choose one with --columns label=NAME or --columns labels=NAME")
    path = header.find("path") or next((column for name in _PATHS if (column := header.named(name)) is not None), None)
    if header.named("annotation_id") is not None and header.named("image") is not None:  # Label Studio's CSV and JSON-MIN
        path, label = path or header.named("image"), label or header.named("choice")
    if label is None:
        one_hot = _one_hot(header, first, path, {split, group, weight})
        if one_hot is not None:
            return TableColumns(one_hot[0], None, split, group, weight, one_hot=one_hot[1])
    if path is None or label is None:
        raise header.missing(" and ".join(field for field, column in (("path", path), ("label", label)) if column is None))
    columns = TableColumns(path, label, split, group, weight, separated)
    header.check_unique(columns.names)
    return columns


def _one_hot(header: _Header, first: Sequence[object], path: str | None, others: set[str | None]) -> tuple[str, tuple[str, ...]] | None:
    """Return the columns of the path and of the classes of a one-hot table; None for another table."""
    cells = dict(zip(header.names, first, strict=False))
    path = path or next((name for name in header.names if name and name not in others), None)
    classes = tuple(name for name in header.names if name and name != path and name not in others)
    if path is None or len(classes) < 2 or is_zero_or_one(cells.get(path)) or not all(is_zero_or_one(cells.get(name)) for name in classes):
        return None
    header.check_unique((path, *classes, *others))
    return path, classes


def is_zero_or_one(cell: object) -> bool:
    """Return True for a cell of a one-hot column."""
    return cell.strip() in _ZEROS_AND_ONES if isinstance(cell, str) else isinstance(cell, bool | int | float) and cell in (0, 1)


class _Header:
    """Names of a table's columns, and the messages about them."""

    def __init__(self, names: Sequence[str], chosen: Mapping[str, str], file: LabelFile, line: int | None) -> None:
        self.names = names
        self._chosen = chosen
        self._file = file
        self._line = line

    def find(self, field: str) -> str | None:
        """Return the column chosen for a field, or else the column of its name.

        Raises:
            DatasetError: the chosen column does not exist.
        """
        if field not in self._chosen:
            return self.named(field)
        column = self.named(self._chosen[field])
        if column is None:
            raise self.error(f"no column {self._chosen[field]!r} (--columns {field}=...)", f"choose from {self._listed()}")
        return column

    def named(self, name: str) -> str | None:
        """Return the column with a name, ignoring case if there is no exact match; None if it is taken for another purpose or missing."""
        taken = {chosen.casefold() for field, chosen in self._chosen.items() if name not in (field, chosen)}
        if name.casefold() in taken:
            return None
        folded = [column for column in self.names if column.casefold() == name.casefold()]
        return name if name in folded else next(iter(folded), None)

    def missing(self, fields: str) -> Exception:
        """Return the error for missing columns. If the first line looks like data, it says that the header is missing."""
        if any("/" in name or "\\" in name or os.path.splitext(name)[1].lower() in SUFFIXES for name in self.names):
            return self.error(f"no header: the first line is {self._listed()}", "add a first line with the names path,label")
        return self.error(
            f"no column {fields}; the columns are {self._listed()}", "name those to read, such as --columns path=file,label=class"
        )

    def check_unique(self, used: Sequence[str | None]) -> None:
        """Check that each column that is read occurs once, and serves one purpose.

        Raises:
            DatasetError: it does not.
        """
        named = [name for name in used if name is not None]
        for name in named:
            if self.names.count(name) > 1:
                raise self.error(f"two columns are named {name!r}", "rename one")
            if named.count(name) > 1:
                raise self.error(f"the column {name!r} is chosen for two purposes", "correct --columns or --group-column")

    def error(self, problem: str, remedy: str) -> Exception:
        return self._file.error(f"{problem}: {remedy}", self._line)

    def _listed(self) -> str:
        more = f" and {len(self.names) - _LISTED:,} more" if len(self.names) > _LISTED else ""
        shown = ", ".join(name if name else "''" for name in self.names[:_LISTED])[:1000]
        return f"{shown}{more}" if self.names else "none"
