"""Rows of Parquet files, read in batches by pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tlcli.contract.errors import DatasetError, first_line
from tlcli.training.data.label_files.label_row import MAX_ROWS, LabelFile, LabelRow
from tlcli.training.data.label_files.row_parser import RowParser
from tlcli.training.data.label_files.table_columns import find_columns

if TYPE_CHECKING:
    import pyarrow

_BATCH = 65_536
"""Rows that are converted to Python objects at once."""


def read_parquet(file: LabelFile, chosen: Mapping[str, str]) -> Iterator[LabelRow]:
    """Yield the rows of a Parquet file. Columns that are not needed are not read.

    Raises:
        DatasetError: pyarrow is not installed, the file is damaged, a column is missing or has an unsuitable type, or a value is invalid.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise file.error("Parquet files need the package pyarrow: pip install 'tlcli[parquet]'") from error
    try:
        with pyarrow.parquet.ParquetFile(file.path) as opened:
            yield from _rows(opened, file, chosen)
    except (pyarrow.ArrowException, OSError) as error:
        raise file.error(
            f"not a Parquet file that can be read ({first_line(error)[:200]}): the file may be incomplete: write it again"
        ) from error


def _rows(opened: Any, file: LabelFile, chosen: Mapping[str, str]) -> Iterator[LabelRow]:
    if opened.metadata.num_rows > MAX_ROWS:
        raise file.error(f"{opened.metadata.num_rows:,} rows: expected at most {MAX_ROWS:,}")
    flat, embedded = _sort_columns(opened.schema_arrow)
    head = next(opened.iter_batches(batch_size=1, columns=flat), None)
    first = {} if head is None else {name: values[0] for name, values in head.to_pydict().items() if values}
    names = [name.strip() for name in flat]
    try:
        columns = find_columns(names, [first.get(name) for name in flat], chosen, file)
    except DatasetError as error:
        if not embedded:
            raise
        raise file.error(
            f"the column {embedded[0]!r} holds the images themselves: expected their paths; open a data set of this kind with"
            " --dataset hfds/NAME"
        ) from error
    own_names = dict(zip(names, flat, strict=True))
    needed = [None if name is None else own_names[name] for name in columns.names]
    parser, line = RowParser(columns, file, "row"), 0
    for batch in opened.iter_batches(batch_size=_BATCH, columns=list(dict.fromkeys(name for name in needed if name is not None))):
        absent = [None] * batch.num_rows
        for cells in zip(*(absent if name is None else batch.column(name).to_pylist() for name in needed), strict=True):
            line += 1
            yield parser.parse(line, cells)


def _sort_columns(schema: pyarrow.Schema) -> tuple[list[str], list[str]]:
    """Return the names of the columns of values and lists, and those of structures and binary values that may be images."""
    import pyarrow.types as types

    flat, embedded = [], []
    for field in schema:
        if types.is_binary(field.type) or types.is_large_binary(field.type):
            embedded.append(field.name)
        elif types.is_struct(field.type) or types.is_map(field.type):
            if types.is_struct(field.type) and any(child.name == "bytes" for child in field.type):
                embedded.append(field.name)
        else:
            flat.append(field.name)
    return flat, embedded
