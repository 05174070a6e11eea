"""Rows of JSON Lines files, and of JSON arrays of flat objects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain, zip_longest
from typing import Any

from tlcli.training.data.label_files.label_row import LabelFile, LabelRow, shorten
from tlcli.training.data.label_files.row_parser import RowParser
from tlcli.training.data.label_files.table_columns import find_columns
from tlcli.training.data.label_files.text_lines import read_lines

_PURPOSES = ("path", "label", "split", "group", "weight")
"""Names of values that the first object may lack and others have, in the order of `TableColumns.names`."""


def read_json_lines(file: LabelFile, chosen: Mapping[str, str]) -> Iterator[LabelRow]:
    """Yield the rows of a JSON Lines file: an object in each line. Empty lines are skipped.

    Args:
        file: file to read.
        chosen: names of columns given by the user.

    Raises:
        DatasetError: a line is not a JSON object, a column is missing, or a value is invalid.
    """
    return read_objects(_objects(file), file, chosen)


def read_objects(objects: Iterator[tuple[int, Any]], file: LabelFile, chosen: Mapping[str, str]) -> Iterator[LabelRow]:
    """Yield a row for each object. The first one determines the columns; others may have a split, group or weight that it lacks.

    Args:
        objects: objects with the lines in which they start.
        file: file that they are in.
        chosen: names of columns given by the user.

    Raises:
        DatasetError: an item is not an object, a column is missing, or a value is invalid.
    """
    first = next(objects, None)
    if first is None:
        return
    line, item = first
    names = [name.strip() for name in _mapping(item, line, file)]
    columns = find_columns(names, list(item.values()), chosen, file, line)
    keys = {name.strip(): name for name in item}
    needed = [purpose if name is None else keys[name] for purpose, name in zip_longest(_PURPOSES, columns.names)]
    parser = RowParser(columns, file, "line")
    for line, item in chain((first,), objects):
        mapping = _mapping(item, line, file)
        yield parser.parse(line, [mapping.get(key) for key in needed])


def _mapping(item: object, line: int, file: LabelFile) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise file.error(f'{shorten(item)}: expected an object such as {{"path": "cat.jpg", "label": "cat"}}', line)
    return item


def _objects(file: LabelFile) -> Iterator[tuple[int, Any]]:
    for line, text in enumerate(read_lines(file), start=1):
        if text.isspace():
            continue
        try:
            yield line, json.loads(text)
        except json.JSONDecodeError as error:
            hint = "; name a file with one JSON array .json" if line == 1 and text.lstrip().startswith("[") else ""
            raise file.error(
                f"not valid JSON in column {error.colno} ({error.msg}): expected one object in each line{hint}", line
            ) from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, or a thousand nested lists
            raise file.error("not JSON that can be read: expected a flat object", line) from error
