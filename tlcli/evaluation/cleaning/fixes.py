"""Fixes to labels: rows of a table that relabel, move or drop images, applied into a new label file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from tlcli.contract.errors import DatasetError, NotFoundError
from tlcli.contract.files.atomic_file import whole_file
from tlcli.contract.files.display_name import from_csv_cell, printable
from tlcli.contract.files.text_file import read_text
from tlcli.evaluation.cleaning.images import LabelledParts
from tlcli.training.data.listing import one_line

Action = Literal["relabel", "move", "drop"]
ACTIONS: tuple[Action, ...] = get_args(Action)
SPLITS = ("train", "val", "test")

_MAX_BYTES = 100 * 1024 * 1024
_NOTHING = ("", "keep")


@dataclass(frozen=True)
class Fix:
    """Changes to one image: a new class, a new split, or removal. None changes nothing."""

    label: str | None = None
    split: str | None = None
    is_dropped: bool = False


def read_fixes(path: Path, images: LabelledParts) -> dict[str, Fix]:
    """Read the rows of a CSV file that have an action, by image name.

    The file has the columns `path` and `action`, which is `relabel`, `move`, `drop`, or `keep` or nothing for no change. `relabel` takes
    the class in the column `value`, or else in `suggested_label`; `move` takes the split in `value`.

    Raises:
        NotFoundError: the file does not exist.
        DatasetError: a column is missing, a row names an unknown image, action, class or split, two rows contradict each other, or no row
            has an action. The message names the line.
        SettingsError: the file is not text; see `tlcli.contract.files.text_file.read_text`.
    """
    if not path.is_file():
        raise NotFoundError(
            f"{path}: no such file: expected a table of fixes, such as the findings.csv of `tlcli clean` with actions in it"
        )
    reader = csv.DictReader(io.StringIO(read_text(path, _MAX_BYTES), newline=""))
    missing = [name for name in ("path", "action") if name not in (reader.fieldnames or ())]
    if missing:
        raise DatasetError(f"{path}: no column {one_line(missing)}: expected the columns path, action and value, separated by commas")
    names = {printable(name): name for name in images.images.names}
    fixes: dict[str, Fix] = {}
    for row in reader:
        cells = {
            key: from_csv_cell((value or "").strip()) for key, value in row.items() if isinstance(key, str) and not isinstance(value, list)
        }
        action = cells["action"].lower()
        if action in _NOTHING:
            continue
        where = f"{path}, line {reader.line_num}"
        if action not in ACTIONS:
            raise DatasetError(f"{where}: unknown action {action!r}: expected {', '.join(ACTIONS)}, or nothing")
        if cells["path"] not in names:
            raise DatasetError(f"{where}: {cells['path']!r} is not an image of {images.where}: use the path as `tlcli clean` writes it")
        name = names[cells["path"]]
        fixes[name] = _merged(fixes.get(name, Fix()), _fix(action, cells, images, where), where)
    if not fixes:
        raise DatasetError(f"{path}: no row has an action: write {', '.join(ACTIONS[:-1])} or {ACTIONS[-1]} in the column action")
    return fixes


def _fix(action: Action, cells: Mapping[str, str], images: LabelledParts, where: str) -> Fix:
    value = cells.get("value", "")
    if action == "drop":
        return Fix(is_dropped=True)
    if action == "move":
        if value.lower() not in SPLITS:
            raise DatasetError(f"{where}: move to {value!r}: expected {', '.join(SPLITS)} in the column value")
        return Fix(split=value.lower())
    label = value or cells.get("suggested_label", "")
    if label not in images.classes:
        raise DatasetError(f"{where}: relabel to {label!r}: expected a class in the column value: {one_line(images.classes)}")
    return Fix(label=label)


def _merged(earlier: Fix, new: Fix, where: str) -> Fix:
    """Combine the fixes of two rows for one image.

    Raises:
        DatasetError: they contradict each other.
    """
    for before, after in ((earlier.label, new.label), (earlier.split, new.split)):
        if before is not None and after is not None and before != after:
            raise DatasetError(f"{where}: {after!r} contradicts {before!r} in an earlier line for the same image: use only one of them")
    if earlier != Fix() and earlier.is_dropped != new.is_dropped:
        raise DatasetError(f"{where}: the image is dropped and changed in two lines: use only one of them")
    return replace(
        earlier, label=new.label or earlier.label, split=new.split or earlier.split, is_dropped=earlier.is_dropped or new.is_dropped
    )


def require_files(images: LabelledParts) -> Path:
    """Return the folder of the image files.

    Raises:
        DatasetError: the images of the data set are not files.
    """
    if images.root is None:
        raise DatasetError(f"{images.where}: its images are not files, so a label file cannot name them: save them to a folder first")
    return images.root


def write_fixed(path: Path, images: LabelledParts, fixes: Mapping[str, Fix]) -> int:
    """Write a label file of all images with the fixes applied. The images and other label files are not changed.

    Args:
        path: label file to write, with absolute paths of images.
        images: images of the data set.
        fixes: fixes by image name.

    Returns:
        Number of images in the file.

    Raises:
        DatasetError: the images of the data set are not files.
        OSError: the file cannot be written.
    """
    root = require_files(images)
    columns = ["path", "label", "split", *(["group"] if images.groups else []), *(["weight"] if images.weights else [])]
    written = 0
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for split, part in images.parts.items():
            for name, label in zip(part.names, part.labels.tolist(), strict=True):
                fix = fixes.get(name, Fix())
                if fix.is_dropped:
                    continue
                row = {"path": str((root / name).absolute()), "label": fix.label or images.classes[label], "split": fix.split or split}
                row |= {"group": images.groups.get(name, "")} if images.groups else {}
                row |= {"weight": f"{images.weights.get(name, 1.0):.9g}"} if images.weights else {}
                writer.writerow(row)
                written += 1
    return written
