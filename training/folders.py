"""Folders of pictures: `<class>/<picture>`, with or without train, val and test folders above; and `<class>.<number>.jpg`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from contract.errors import DatasetError
from contract.pictures import SUFFIXES
from training.listing import Listing
from training.scan import FolderSource

_PART_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_FLAT = re.compile(r"(.+)\.[0-9]+\.[^.]+")
"""Kaggle's way: `cat.0.jpg`, the class before the number."""

_UNLABELLED = re.compile(r"[0-9]+\.[^.]+")
"""Kaggle's test pictures, whose classes Kaggle keeps: `1.jpg`."""

_MICROSOFT = "PetImages"
"""What Microsoft's archive of cats and dogs unpacks to, beside a readme."""

_LAYOUT = "expected <class>/<picture>, or train/<class>/<picture> with val and test beside it, or <class>.<number>.jpg"

_Classes = dict[str, list[str]]


def list_folder(folder: Path, where: str | None = None) -> Listing:
    """The pictures of a folder, by part and class; nothing is opened.

    Classes are folders, sorted by name; pictures may lie deeper. Hidden files and folders are passed over.

    Args:
        folder: an existing folder.
        where: what messages call it; the folder itself by default.

    Raises:
        DatasetError: no known layout.
    """
    where = where or str(folder)
    if (folder / _MICROSOFT).is_dir():
        folder = folder / _MICROSOFT
    parts = _part_folders(folder, where)
    if not parts:
        classes = _read_classes(folder, "", where)
        return Listing(where, tuple(classes), classes, None, None, FolderSource(folder))
    train = _read_classes(folder / parts["train"], parts["train"] + "/", where)
    others: dict[str, _Classes | None] = {"val": None, "test": None}
    for part in others:
        if part in parts and not _is_unlabelled(folder / parts[part]):
            others[part] = _read_classes(folder / parts[part], parts[part] + "/", where)
    return Listing(where, tuple(train), train, others["val"], others["test"], FolderSource(folder))


def _part_folders(folder: Path, where: str) -> dict[str, str]:
    """Part to the name of its folder, `train` always among them; empty if the folder is not divided into parts.

    Names alone do not tell: a folder `train` with nothing but pictures in it is a class of pictures of trains.
    """
    found: dict[str, str] = {}
    for child in _visible_folders(folder):
        part = _PART_NAMES.get(child.lower())
        if part is None:
            continue
        if part in found:
            raise DatasetError(f"{where}: both {found[part]} and {child} would be its {part} part: keep one")
        found[part] = child
    divided = [part for part, child in found.items() if _holds_classes(folder / child)]
    if divided and "train" not in divided:
        raise DatasetError(f"{where}: a {found[divided[0]]} folder of classes, but no such train folder: {_LAYOUT}")
    return found if divided else {}


def _holds_classes(folder: Path) -> bool:
    return bool(_visible_folders(folder)) or _are_flat(_pictures_in(folder))


def _read_classes(folder: Path, prefix: str, where: str) -> _Classes:
    """Class to its pictures' names, which begin with `prefix`."""
    folders = _visible_folders(folder)
    if folders:
        return {name: _pictures_below(folder / name, f"{prefix}{name}/") for name in folders}
    pictures = _pictures_in(folder)
    if not _are_flat(pictures):
        place = f"{where}: " + (f"in {prefix.rstrip('/')}: " if prefix else "")
        what = f"{len(pictures):,} pictures, but no folders of classes" if pictures else "neither pictures nor folders of classes"
        raise DatasetError(f"{place}{what}: {_LAYOUT}")
    classes: _Classes = {}
    for name in pictures:
        matched = _FLAT.fullmatch(name)
        assert matched is not None  # `_are_flat` has said so
        classes.setdefault(matched[1], []).append(prefix + name)
    return dict(sorted(classes.items()))


def _are_flat(pictures: list[str]) -> bool:
    return bool(pictures) and all(_FLAT.fullmatch(name) for name in pictures)


def _is_unlabelled(folder: Path) -> bool:
    pictures = _pictures_in(folder)
    return bool(pictures) and not _visible_folders(folder) and all(_UNLABELLED.fullmatch(name) for name in pictures)


def _visible_folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__MACOSX")))


def _pictures_in(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_picture(entry.name) and entry.is_file())


def _pictures_below(folder: Path, prefix: str) -> list[str]:
    found: list[str] = []
    for place, inside, files in os.walk(folder, followlinks=True):
        inside[:] = [name for name in inside if not name.startswith(".")]
        below = Path(place).relative_to(folder).as_posix()
        start = prefix if below == "." else f"{prefix}{below}/"
        found += [start + name for name in files if _is_picture(name)]
    return sorted(found)


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
