"""Rows of a label file in memory, as columns, because a million objects would take several times as much."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress

from tlcli.contract.files.display_name import printable
from tlcli.training.data.label_files.image_paths import ImagePaths, NotFound, describe_elsewhere
from tlcli.training.data.label_files.label_row import MAX_ROWS, LabelFile, LabelRows
from tlcli.training.data.label_files.remote_files import fetch_images
from tlcli.training.runtime.progress import ProgressFactory

_SHOWN = 5
"""Number of lines that a message names."""


@dataclass(eq=False)
class LabelTable:
    """Columns of a label file. Equal indices belong to one image.

    unit: what `lines` counts; see `LabelRows`. names: paths as written, and after `find_images` the names of the images.
    lines, labels, splits, groups, weights: see `LabelRow`. others: further places of images, by index.
    notes: remarks for the user, one line each.
    """

    unit: str
    names: list[str] = field(default_factory=list)
    lines: array[int] = field(default_factory=lambda: array("q"))
    labels: list[tuple[str, ...]] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    weights: array[float] = field(default_factory=lambda: array("d"))
    others: dict[int, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def keep(self, selected: Sequence[bool]) -> None:
        """Remove the rows that are not selected."""
        kept = [index for index, is_kept in enumerate(selected) if is_kept]
        if self.others:
            self.others = {new: self.others[old] for new, old in enumerate(kept) if old in self.others}
        self.names, self.labels = list(compress(self.names, selected)), list(compress(self.labels, selected))
        self.splits, self.groups = list(compress(self.splits, selected)), list(compress(self.groups, selected))
        self.lines, self.weights = array("q", compress(self.lines, selected)), array("d", compress(self.weights, selected))

    def at(self, indices: Sequence[int]) -> str:
        """Return the lines of rows for a message: `lines 3, 4 and 5 more`."""
        shown = ", ".join(f"{self.lines[index]:,}" for index in indices[:_SHOWN])
        more = f" and {len(indices) - _SHOWN:,} more" if len(indices) > _SHOWN else ""
        return f"{self.unit}{'' if len(indices) == 1 else 's'} {shown}{more}"


def read_table(file: LabelFile, rows: LabelRows) -> LabelTable:
    """Read all rows.

    Raises:
        DatasetError: the file has no rows or more than 20 million, or a row is invalid.
    """
    table = LabelTable(rows.unit)
    names, lines, labels = table.names.append, table.lines.append, table.labels.append
    splits, groups, weights = table.splits.append, table.groups.append, table.weights.append
    for index, (line, path, row_labels, split, group, weight, others) in enumerate(rows.rows):
        if index >= MAX_ROWS:
            raise file.error(f"more than {MAX_ROWS:,} rows: divide the file", line, rows.unit)
        names(path)
        lines(line)
        labels(row_labels)
        splits(split)
        groups(group)
        weights(weight)
        if others:
            table.others[index] = others
    if not table.names:
        raise file.error("has no rows: expected a line for each image below the header")
    return table


def find_images(table: LabelTable, file: LabelFile, paths: ImagePaths, progress: ProgressFactory) -> None:
    """Replace the paths of a table by the names of the images. Images at URLs are fetched; those on this machine are not opened.

    Raises:
        DatasetError: images are missing; the message names the first lines and the number.
        HubError: a driver for the URLs is not installed.
    """
    problems: list[tuple[int, str]] = []
    written = table.names
    names: list[str] = []
    for index, path in enumerate(written):
        try:
            names.append(paths.find(path, table.others.get(index, ())))
        except NotFound as error:
            names.append("")
            problems.append((index, str(error)))
    if paths.remote and not problems:
        failed = fetch_images({str(paths.root / name): url for name, url in paths.remote.items()}, progress)
        if failed:
            problems = [(index, failed[copy]) for index, name in enumerate(names) if (copy := str(paths.root / name)) in failed]
    if problems:
        shown = "; ".join(f"{table.unit} {table.lines[index]:,}: {printable(written[index])}: {why}" for index, why in problems[:_SHOWN])
        more = f"; and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
        hint = next(filter(None, (describe_elsewhere(written[index]) for index, _ in problems)), "")
        remedy = hint or f"paths start from {printable(str(file.base))}: correct them, or remove the rows"
        raise file.error(f"{len(problems):,} of {len(names):,} images cannot be found: {shown}{more}: {remedy}")
    if paths.by_name:
        count = "1 image is" if len(paths.by_name) == 1 else f"{len(paths.by_name):,} images are"
        first, place = map(printable, paths.by_name[0])
        table.notes.append(f"{count} named without a folder and taken from below {printable(str(file.base))}, such as {first} from {place}")
    table.names = names


def drop_repeated(table: LabelTable, file: LabelFile) -> None:
    """Remove rows that repeat an image, with a note.

    Raises:
        DatasetError: two rows give an image different labels, splits, groups or weights; the message names both lines.
    """
    first: dict[str, int] = {}
    repeated: list[int] = []
    for index, name in enumerate(table.names):
        earlier = first.setdefault(name, index)
        if earlier != index:
            _require_equal(table, file, earlier, index)
            repeated.append(index)
    if not repeated:
        return
    selected = [True] * len(table)
    for index in repeated:
        selected[index] = False
    count = "1 row repeats an earlier one" if len(repeated) == 1 else f"{len(repeated):,} rows repeat earlier ones"
    table.notes.append(f"{count} and {'is' if len(repeated) == 1 else 'are'} ignored: {table.at(repeated)}")
    table.keep(selected)


def _require_equal(table: LabelTable, file: LabelFile, earlier: int, later: int) -> None:
    lines = f"{table.unit}s {table.lines[earlier]:,} and {table.lines[later]:,}: {printable(table.names[earlier])}"
    if set(table.labels[earlier]) != set(table.labels[later]):
        first, second = (", ".join(table.labels[index]) for index in (earlier, later))
        raise file.error(f"{lines} has the labels {first} and {second}: remove one of the rows")
    for values, kind in ((table.splits, "splits"), (table.groups, "groups"), (table.weights, "weights")):
        if values[earlier] != values[later]:
            shown = " and ".join(printable(str(values[index])) or "none" for index in (earlier, later))
            raise file.error(f"{lines} has two {kind}, {shown}: remove one of the rows")
