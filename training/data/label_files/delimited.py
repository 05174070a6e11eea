"""Rows of CSV and TSV files, with the separator that their header uses."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from itertools import chain
from operator import itemgetter
from typing import NamedTuple

from tlcli.contract.errors import DatasetError
from tlcli.training.data.label_files.label_row import LabelFile, LabelRow
from tlcli.training.data.label_files.row_parser import RowParser
from tlcli.training.data.label_files.table_columns import TableColumns, find_columns
from tlcli.training.data.label_files.text_lines import read_lines

_COMMAS_FIRST = (",", ";", "\t", "|")
_TABS_FIRST = ("\t", ",", ";", "|")

_EXCEL_HINT = "sep="
"""Start of a first line that names the separator for Excel."""


class _Record(NamedTuple):
    """Cells of a row, and the line in which it starts."""

    line: int
    cells: list[str]


class _Table(NamedTuple):
    """Table whose header has been read. records: rows below the header."""

    delimiter: str
    names: list[str]
    columns: TableColumns
    records: Iterator[_Record]


def read_delimited(file: LabelFile, chosen: Mapping[str, str], *, tabs: bool) -> Iterator[LabelRow]:
    """Yield the rows of a CSV or TSV file. Empty lines are skipped.

    Args:
        file: file to read.
        chosen: names of columns given by the user.
        tabs: True for a TSV file, for which tabs are tried as separator before commas.

    Raises:
        DatasetError: a column is missing, a row has more or fewer cells than the header, a quoted cell is not closed, or a cell has an
            invalid value.
    """
    table = _open_table(file, chosen, _TABS_FIRST if tabs else _COMMAS_FIRST)
    parser, width = RowParser(table.columns, file, "line"), len(table.names)
    cells_of = itemgetter(*(width if name is None else table.names.index(name) for name in table.columns.names))
    for line, cells in table.records:
        if len(cells) != width:
            cells = _fit(cells, width, line, table.delimiter, file)
        cells.append("")  # the cell of columns that the table does not have
        yield parser.parse(line, [cell or None for cell in cells_of(cells)])


def _open_table(file: LabelFile, chosen: Mapping[str, str], delimiters: tuple[str, ...]) -> _Table:
    """Read the header with the first separator that separates it into the columns to read.

    Raises:
        DatasetError: no separator does; the message is that of the one that gives the most columns.
    """
    problems: list[tuple[int, DatasetError]] = []
    for delimiter in delimiters:
        records = _records(file, delimiter)
        names: list[str] = []
        try:
            header = next(records, None)
            if header is None:
                raise file.error("contains no lines: expected a header such as path,label, and a line for each image")
            names = [name.strip() for name in header.cells]
            first = next(records, None)
            columns = find_columns(names, first.cells if first else (), chosen, file, header.line)
        except DatasetError as error:
            problems.append((len(names), error))
            continue
        return _Table(delimiter, names, columns, records if first is None else chain((first,), records))
    raise max(problems, key=lambda problem: problem[0])[1]


def _records(file: LabelFile, delimiter: str) -> Iterator[_Record]:
    """Yield the rows with at least one cell that is not blank.

    Raises:
        DatasetError: the quotes of a row are wrong, or a cell is longer than the csv module allows (131,072 characters).
    """
    reader = csv.reader(read_lines(file), delimiter=delimiter, strict=True)
    start = 1
    try:
        for cells in reader:
            if any(cells) and not _are_blank(cells) and not (start == 1 and cells[0].lower().startswith(_EXCEL_HINT)):
                yield _Record(start, cells)
            start = reader.line_num + 1
    except csv.Error as error:
        problem = str(error)
        if "unexpected end of data" in problem or "field limit" in problem or "field larger" in problem:
            problem = "a quoted cell is not closed"
        raise file.error(f"{problem}: put cells with quotes between double quotes, and double the quotes inside", start) from error


def _are_blank(cells: list[str]) -> bool:
    return (not cells[0] or cells[0].isspace()) and not any(cell.strip() for cell in cells)


def _fit(cells: list[str], width: int, line: int, delimiter: str, file: LabelFile) -> list[str]:
    """Return a row with as many cells as the header. Further cells may be empty.

    Raises:
        DatasetError: further cells are not empty, or cells are missing.
    """
    if len(cells) > width and not any(cell.strip() for cell in cells[width:]):
        return cells[:width]
    shown = "a tab" if delimiter == "\t" else repr(delimiter)
    count = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
    raise file.error(f"{count}, but the header has {width}: write a cell that contains {shown} between double quotes", line)
