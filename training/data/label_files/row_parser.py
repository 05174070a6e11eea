"""Conversion of the cells of a table to rows, for cells of text and of JSON's or Parquet's types."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from tlcli.contract.files.display_name import label as printable_label
from tlcli.training.data.label_files.label_row import LabelFile, LabelRow, check_label, check_path, shorten
from tlcli.training.data.label_files.table_columns import TableColumns, is_zero_or_one

SEPARATOR = "|"
"""Separator of several labels in a cell."""

_MIN_WEIGHT, _MAX_WEIGHT = 1e-6, 1e6

_CHOICES = '{"choices"'
"""Start of a cell of Label Studio's CSV export that holds several choices."""


class RowParser:
    """Parser for the rows of a table. Equal labels, splits and groups share one object, because tables have millions of rows."""

    def __init__(self, columns: TableColumns, file: LabelFile, unit: str) -> None:
        """Create a parser.

        Args:
            columns: columns of the table.
            file: file that the table is in.
            unit: what the rows are counted in; see `LabelRows`.
        """
        self._columns = columns
        self._file = file
        self._unit = unit
        self._labels: dict[str, tuple[str, ...]] = {}
        self._texts: dict[str, str] = {}
        self._one_hot = tuple((check_label(name),) for name in map(printable_label, columns.one_hot))

    def parse(self, line: int, cells: Sequence[object]) -> LabelRow:
        """Convert a row.

        Args:
            line: number of the row.
            cells: cells in the order of `TableColumns.names`; None for a cell that is missing or a column that does not exist.

        Raises:
            DatasetError: a cell has an invalid value; the message names the file and the line.
        """
        path, label, split, group, weight = cells[:5]
        try:
            path = check_path(path)
            labels = self._from_one_hot(cells[5:]) if self._one_hot else self._read_labels(label)
            return LabelRow(
                line,
                path,
                labels,
                "" if split is None else self._text(split, self._columns.split),
                "" if group is None else self._text(group, self._columns.group),
                1.0 if weight is None else _weight(weight),
            )
        except ValueError as error:
            raise self._file.error(str(error), line, self._unit) from error

    def _read_labels(self, value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            known = self._labels.get(value)
            if known is None:
                known = self._labels[value] = self._split(value)
            return known
        return labels_of(value, self._columns.label)

    def _split(self, text: str) -> tuple[str, ...]:
        if text.startswith(_CHOICES):
            try:
                return labels_of(json.loads(text), self._columns.label)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{self._columns.label} {shorten(text)}: expected Label Studio's choices in JSON") from error
        return _distinct(text.split(SEPARATOR)) if self._columns.separated else _distinct([text])

    def _from_one_hot(self, cells: Sequence[object]) -> tuple[str, ...]:
        chosen: tuple[str, ...] = ()
        for cell, name, label in zip(cells, self._columns.one_hot, self._one_hot, strict=True):
            if not is_zero_or_one(cell):
                raise ValueError(f"{name} is {shorten(cell)}: expected 0 or 1, as in the columns of the other classes")
            if float(cell) == 1:  # type: ignore[arg-type]  # checked above
                chosen = (*chosen, *label) if chosen else label
        return chosen

    def _text(self, value: object, column: str | None) -> str:
        """Return the text of a split or a group; empty for a missing value."""
        if isinstance(value, str):
            text = value.strip()
        elif isinstance(value, float):
            text = "" if math.isnan(value) else f"{int(value) if value.is_integer() else value}"
        elif isinstance(value, bool | int):
            text = str(value)
        else:
            raise ValueError(f"{column} is {shorten(value)}: expected text or a number")
        return self._texts.setdefault(text, text)


def labels_of(value: object, column: str | None) -> tuple[str, ...]:
    """Return the labels in a value of a JSON or Parquet file. A list holds several labels, and null and NaN none.

    Raises:
        ValueError: the value is neither text, a number, true or false, nor a list of them.
    """
    match value:
        case None:
            return ()
        case str():
            return _distinct([value])
        case bool():
            return ("true",) if value else ("false",)
        case int():
            return (str(value),)
        case float():
            return () if math.isnan(value) else (str(int(value)) if value.is_integer() else str(value),)
        case {"choices": list(choices)}:
            return labels_of(choices, column)
        case list():
            if any(isinstance(item, list | dict) for item in value):
                raise ValueError(f"{column} is {shorten(value)}: expected a list of labels")
            return _distinct([label for item in value for label in labels_of(item, column)])
        case _:
            raise ValueError(f"{column} is {shorten(value)}: expected a label as text or as a number")


def _distinct(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the labels without empty ones, repeated ones and NaN, as pandas writes a missing value on request."""
    labels = (printable_label(check_label(text)) for text in texts)
    return tuple(dict.fromkeys(label for label in labels if label and label not in ("nan", "NaN")))


def _weight(value: object) -> float:
    if isinstance(value, str):
        if not value.strip():
            return 1.0
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
    elif isinstance(value, int | float) and not isinstance(value, bool):
        weight = float(value)
    else:
        weight = math.nan
    if not _MIN_WEIGHT <= weight <= _MAX_WEIGHT:
        hint = "; remove the row of an image that is not to count" if weight == 0 else ""
        raise ValueError(f"weight {shorten(value)}: expected a number from {_MIN_WEIGHT:g} to {_MAX_WEIGHT:,.0f}, such as 0.5{hint}")
    return weight
