"""Opening of label files by their suffix, on this machine or at a URL."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from tlcli.contract.errors import DatasetError, HubError
from tlcli.contract.files.display_name import printable
from tlcli.training.data.label_files.datumaro import read_document
from tlcli.training.data.label_files.delimited import read_delimited
from tlcli.training.data.label_files.json_items import first_character, read_items
from tlcli.training.data.label_files.json_table import read_json_lines, read_objects
from tlcli.training.data.label_files.label_row import MAX_BYTES, NAMED_SUFFIXES, SUFFIXES, LabelFile, LabelRows
from tlcli.training.data.label_files.label_studio import is_task, read_tasks
from tlcli.training.data.label_files.parquet import read_parquet
from tlcli.training.data.label_files.remote_files import fetch, is_remote, mirror_of


def is_label_file(spec: str) -> bool:
    """Return True if the value of `--dataset` is a label file: a URL, or a path with the suffix of one that is not a folder."""
    return is_remote(spec) or (suffix_of(spec) in SUFFIXES and not Path(spec).expanduser().is_dir())


def suffix_of(spec: str) -> str:
    """Return the suffix of a path or URL in lower case."""
    return Path(urlsplit(spec).path if is_remote(spec) else spec).suffix.lower()


def open_label_file(spec: str) -> LabelFile:
    """Open a label file. A remote one is copied to the cache first, every time, since it may have changed.

    Raises:
        DatasetError: the file does not exist, is no file, is empty, or is larger than 8 GiB.
        HubError: the file cannot be fetched.
    """
    where = printable(spec)
    if is_remote(spec):
        path = mirror_of(spec)
        if suffix_of(spec) not in SUFFIXES:
            raise DatasetError(f"{where}: expected the URL of a label file, {NAMED_SUFFIXES}")
        try:
            fetch(spec, path, MAX_BYTES)
        except HubError as error:
            raise HubError(f"{where}: {error}") from error
        opened = LabelFile(path, where, spec.partition("?")[0].rpartition("/")[0] + "/")
    else:
        path = Path(spec).expanduser()
        if not path.exists():
            raise DatasetError(f"{where}: no such file: expected a label file")
        if not path.is_file():
            raise DatasetError(f"{where}: is not a regular file: expected a label file, {NAMED_SUFFIXES}")
        opened = LabelFile(path, where, f"{path.parent}/")
    size = path.stat().st_size
    if not size:
        raise opened.error("is empty: expected a header such as path,label, and a line for each image")
    if size > MAX_BYTES:
        raise opened.error(f"{size:,} bytes: expected at most {MAX_BYTES:,}")
    return opened


def read_rows(file: LabelFile, chosen: Mapping[str, str]) -> LabelRows:
    """Return the rows of a label file. They are read as they are iterated over, and so are most errors raised.

    Args:
        file: opened label file.
        chosen: names of columns given by the user, such as `{"path": "file", "label": "class"}`.

    Raises:
        DatasetError: see the readers of the formats.
    """
    match file.path.suffix.lower():
        case ".csv":
            return LabelRows("line", read_delimited(file, chosen, tabs=False))
        case ".tsv":
            return LabelRows("line", read_delimited(file, chosen, tabs=True))
        case ".jsonl" | ".ndjson":
            return LabelRows("line", read_json_lines(file, chosen))
        case ".parquet":
            return LabelRows("row", read_parquet(file, chosen))
        case _:
            return _read_json(file, chosen)


def _read_json(file: LabelFile, chosen: Mapping[str, str]) -> LabelRows:
    if first_character(file) == "{":
        return LabelRows("item", read_document(file, chosen), partial=True)
    first = next(read_items(file), None)
    if first is not None and is_task(first[1]):
        return LabelRows("line", read_tasks(read_items(file), file, chosen), partial=True)
    return LabelRows("line", read_objects(read_items(file), file, chosen))
