"""Listing of the images of a label file: their classes, splits, groups and weights.

spec --- open, read rows ---> LabelTable                                 label_files.read_label_file, label_files.label_table
LabelTable --- labels, images, repeated rows, splits ---> Listing        this module
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tlcli.contract.errors import DatasetError
from tlcli.contract.files.display_name import printable
from tlcli.contract.images.find_images import Skipped
from tlcli.contract.model.description import Task
from tlcli.training.data.folder_source import FolderSource
from tlcli.training.data.label_files.image_paths import ImagePaths
from tlcli.training.data.label_files.label_row import LabelFile
from tlcli.training.data.label_files.label_table import LabelTable, drop_repeated, find_images, read_table
from tlcli.training.data.label_files.read_label_file import open_label_file, read_rows
from tlcli.training.data.label_files.remote_files import is_remote, mirror_of
from tlcli.training.data.listing import Images, Listing, one_line
from tlcli.training.data.split_names import part_name
from tlcli.training.runtime.progress import ProgressFactory

_PARTS = ("train", "val", "test")

_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0+)?")
"""Label that is a whole number, also as pandas writes it in a column with missing values, such as 3.0."""


def list_label_file(
    spec: str, columns: Mapping[str, str], group_column: str | None, progress: ProgressFactory, task: Task | None = None
) -> Listing:
    """List the images of a label file by part and class. Images on this machine are not opened.

    Classes are sorted by name, or by number if all labels are whole numbers. Rows without a split belong to the training part, or to the
    part of their group. `val` is None if no row is in it.

    Args:
        spec: path or URL of the file.
        columns: names of columns given by the user; see `FinetuneConfig.columns`.
        group_column: name of the column of groups; None for `group`.
        progress: progress bar for images that are fetched.
        task: see `FinetuneConfig.task`; None for several labels per image if a row has several.

    Raises:
        DatasetError: the file cannot be read, images are missing, or rows contradict each other; the message names file and line.
        HubError: a remote file cannot be fetched.
    """
    file = open_label_file(spec)
    chosen = dict(columns)
    if group_column is not None and chosen.setdefault("group", group_column) != group_column:
        raise file.error(f"--group-column {group_column} and --columns group={chosen['group']} name two columns: use only one of them")
    rows = read_rows(file, chosen)
    table = read_table(file, rows)
    several = task == "multi-label" or (task is None and any(len(labels) > 1 for labels in table.labels))
    if not several:
        _require_one_label(table, file)
    left_out = _drop_unlabelled(table, file, partial=rows.partial, several=several)
    _unify_numbers(table)
    remote = is_remote(spec)
    root = mirror_of(spec).parent if remote else Path(file.base)
    find_images(table, file, ImagePaths(root, file.base), progress)
    drop_repeated(table, file)
    parts, folders = _assign_parts(table, file)
    by_part = {part: _by_class(table.names, table.labels, parts, part) for part in _PARTS}
    first = next(images for images in by_part.values() if images)
    _note_similar_classes(first, table)
    if "group" in chosen and not any(table.groups):
        raise file.error(f"no row has a group in {chosen['group']!r}: choose another column of groups, or leave it out")
    has_groups, has_weights = any(table.groups), min(table.weights) != max(table.weights)
    return Listing(
        where=file.where,
        classes=tuple(first),
        train=by_part["train"],
        val=by_part["val"] or None,
        test=by_part["test"] or None,
        source=FolderSource(root),
        skipped=left_out,
        notes=tuple(table.notes),
        folders=folders,
        is_label_file=True,
        groups={name: group or name for name, group in zip(table.names, table.groups, strict=True)} if has_groups else None,
        group_column=chosen.get("group", "group") if has_groups else "",
        weights=dict(zip(table.names, table.weights, strict=True)) if has_weights else None,
        labels=dict(zip(table.names, table.labels, strict=True)) if several else None,
        unlabelled={part: _unlabelled(table, parts, part) for part in _PARTS} if several else {},
    )


def _drop_unlabelled(table: LabelTable, file: LabelFile, *, partial: bool, several: bool) -> tuple[Skipped, ...]:
    """Remove the rows without a label from the export of a labelling tool, and from a test split that has no labels at all.

    With several labels per image, other images without a label are kept as images of none of the classes.

    Raises:
        DatasetError: other rows have no label, or all have none.
    """
    missing = [index for index, labels in enumerate(table.labels) if not labels]
    if not missing:
        return ()
    if len(missing) == len(table):
        raise file.error("no row has a label: expected a label for each image")
    labelled = {_part(split) or "train" for split, labels in zip(table.splits, table.labels, strict=True) if labels}
    if several and not partial:
        kept = [index for index in missing if (_part(table.splits[index]) or "train") in labelled]
        if kept:
            count = "1 image has" if len(kept) == 1 else f"{len(kept):,} images have"
            table.notes.append(f"{count} no label, and so none of the classes: {table.at(kept)}")
        missing = sorted(set(missing).difference(kept))
        if not missing:
            return ()
    labelled_test = "test" in labelled
    if not partial and (labelled_test or any(_part(table.splits[index]) != "test" for index in missing)):
        rows = "row has" if len(missing) == 1 else "rows have"
        raise file.error(
            f"{len(missing):,} {rows} no label (an empty cell or NaN): {table.at(missing)}: add the labels, or remove the rows"
        )
    reason = "no label yet" if partial else "no label in the test split"
    left_out = tuple(Skipped(table.names[index], reason) for index in missing)
    dropped = set(missing)
    table.keep([index not in dropped for index in range(len(table))])
    return left_out


def _require_one_label(table: LabelTable, file: LabelFile) -> None:
    several = next((index for index, labels in enumerate(table.labels) if len(labels) > 1), None)
    if several is not None:
        raise file.error(
            f"{len(table.labels[several])} labels ({one_line(table.labels[several])}), but --task single-label expects one label in each"
            " row: leave --task out, or remove the labels",
            table.lines[several],
            table.unit,
        )


def _unify_numbers(table: LabelTable) -> None:
    """Write labels that are all whole numbers in one way, so that 3 and 3.0 are one class."""
    distinct = set(table.labels)
    matched = {label: _NUMBER.fullmatch(label) for labels in distinct for label in labels}
    if all(matched.values()):
        numbers = {label: number[1] for label, number in matched.items() if number is not None}
        unified = {labels: tuple(dict.fromkeys(numbers[label] for label in labels)) for labels in distinct}
        table.labels = [unified[labels] for labels in table.labels]


def _assign_parts(table: LabelTable, file: LabelFile) -> tuple[list[str], dict[str, str]]:
    """Return the part of each row, and for each part the split that it comes from; no splits if no row has one.

    Raises:
        DatasetError: a split is unknown, two splits would be one part, or rows of a group are in different splits.
    """
    words = _split_words(table, file)
    if not words:
        return ["train"] * len(table), {}
    parts = [words.get(split, "") for split in table.splits]
    of_group: dict[str, int] = {}
    for index, (part, group) in enumerate(zip(parts, table.groups, strict=True)):
        if part and group:
            earlier = of_group.setdefault(group, index)
            if parts[earlier] != part:
                lines = f"{table.unit}s {table.lines[earlier]:,} and {table.lines[index]:,}"
                splits = f"{printable(table.splits[earlier])} and {printable(table.splits[index])}"
                raise file.error(f"{lines}: the group {printable(group)} is in two splits, {splits}: put all its rows into one split")
    without = [index for index, part in enumerate(parts) if not part]
    for index in without:
        group = table.groups[index]
        parts[index] = parts[of_group[group]] if group in of_group else "train"
    if without:
        by_group = sum(table.groups[index] in of_group for index in without)
        groups = f", {by_group:,} of them to that of their group" if by_group else ""
        count = "1 row has no split and belongs" if len(without) == 1 else f"{len(without):,} rows have no split and belong"
        table.notes.append(f"{count} to the training part{groups}: {table.at(without)}")
    names: dict[str, list[str]] = defaultdict(list)
    for split, part in words.items():
        names[part].append(split)
    used = set(parts)
    return parts, {
        part: f"split {'/'.join(map(printable, names[part]))}" if part in names else "rows without a split"
        for part in _PARTS
        if part in used
    }


def _split_words(table: LabelTable, file: LabelFile) -> dict[str, str]:
    """Return the part of each value of the column of splits. `eval` is the validation part, or the test part next to a validation part.

    Raises:
        DatasetError: a value names no part.
    """
    words: dict[str, str] = {}
    for split in dict.fromkeys(table.splits):
        part = _part(split)
        if part is None or part == "unlabelled":
            index = table.splits.index(split)
            raise file.error(
                f"split {printable(split)!r}: expected train, val or test, or nothing for the training part", table.lines[index], table.unit
            )
        if part:
            words[split] = part
    free = next((part for part in ("val", "test") if part not in words.values()), "val")
    return {split: free if part == "eval" else part for split, part in words.items()}


def _part(split: str) -> str | None:
    """Return the part that a split names; empty for an empty one, and None for an unknown one."""
    if not split:
        return ""
    parsed = part_name(split)
    return None if parsed is None or parsed.rest or any(letter.isdigit() for letter in split) else parsed.word


def _unlabelled(table: LabelTable, parts: Sequence[str], part: str) -> list[str]:
    """Return the sorted images of a part without any label."""
    return sorted(name for name, labels, own in zip(table.names, table.labels, parts, strict=True) if own == part and not labels)


def _by_class(names: Sequence[str], labels: Sequence[tuple[str, ...]], parts: Sequence[str], part: str) -> Images:
    """Return the sorted images of a part by class, sorted, too, so that the order of the rows has no effect."""
    images: dict[str, list[str]] = defaultdict(list)
    for name, labels_of_image, own in zip(names, labels, parts, strict=True):
        if own == part:
            for label in labels_of_image:
                images[label].append(name)
    are_numbers = all(_NUMBER.fullmatch(label) for label in images)
    return {label: sorted(images[label]) for label in sorted(images, key=int if are_numbers else None)}


def _note_similar_classes(classes: Images, table: LabelTable) -> None:
    folded: dict[str, str] = {}
    for label in classes:
        earlier = folded.setdefault(" ".join(label.casefold().split()), label)
        if earlier != label:
            table.notes.append(
                f"the classes {earlier!r} and {label!r} differ only in case or spaces: write them in the same way if they are one"
            )
            return


def require_label_file_settings(spec: str, columns: Mapping[str, str], group_column: str | None) -> None:
    """Check that settings for label files are not given for other data sets.

    Raises:
        DatasetError: they are.
    """
    for flag, is_given in (("--columns", bool(columns)), ("--group-column", group_column is not None)):
        if is_given:
            raise DatasetError(f"{flag} applies to label files, but {printable(spec)} is none: leave {flag} out")
