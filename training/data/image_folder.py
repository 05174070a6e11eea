"""Layout detection for image folders: `<class>/<image>`, with or without parts or wrapping folders, and `<class>.<number>.jpg`.

Folder names alone are ambiguous. A `train` folder that contains class folders is a part; a `train` folder that contains images, or that
is next to other classes, is a class. All files and folders that are left out are recorded in `Listing.skipped`.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tlcli.contract.errors import DatasetError, NotFoundError
from tlcli.contract.files.display_name import label, printable, same_name
from tlcli.contract.images.find_images import Scanner, join
from tlcli.training.data.folder_source import FolderSource
from tlcli.training.data.listing import LAYOUT, Listing
from tlcli.training.data.shapes import BOXES_FILE
from tlcli.training.data.split_names import part_name

_FLAT = re.compile(r"(.+)\.[0-9]+\.[^.]+", re.DOTALL)
"""Pattern of file names in Kaggle's flat layout, such as `cat.0.jpg`, where the class precedes the number."""

_PARTS = ("train", "val", "test")

_NEXT_TO_CLASSES = "is next to the class folders"


@dataclass(frozen=True)
class _Classes:
    """Classes of a part.

    place: folder that contains the classes. folders: folders of each class. flat: images of each class in the flat layout.
    """

    place: str
    folders: Mapping[str, Sequence[str]]
    flat: Mapping[str, Sequence[str]]

    @property
    def names(self) -> list[str]:
        return sorted(self.folders or self.flat)


def list_folder(folder: Path, where: str | None = None) -> Listing:
    """List the images of a folder by part and class. Files with a known image suffix are not opened.

    Classes are sorted by name, and their images may be in subfolders. `train` is empty if there is only a test or validation folder.

    Args:
        folder: existing folder to list.
        where: name of the data set in messages; defaults to the path of the folder.

    Raises:
        DatasetError: the layout is not recognized, or a folder cannot be listed.
    """
    where = where or printable(str(folder))
    try:
        scanner = Scanner(folder)
        top = _unwrapped(scanner, "", where)
        if not top:
            return _list(scanner, where)
        inner = _list(Scanner(folder / top), where)
    except NotFoundError as error:
        raise DatasetError(str(error)) from error
    outer = tuple(scanner.skipped.values())
    return dataclasses.replace(
        inner, skipped=(*outer, *(dataclasses.replace(entry, name=join(top, entry.name)) for entry in inner.skipped)), top=printable(top)
    )


def _list(scanner: Scanner, where: str) -> Listing:
    parts = _part_folders(scanner, "", where)
    by_part: dict[str, _Classes | None] = dict.fromkeys(_PARTS)
    if parts:
        scanner.note("", images="is next to the folders of the parts")
        for name in scanner.look("").folders:
            if name not in parts.values():
                scanner.skip(name, "not a training, validation or test folder", is_folder=True)
        for part, name in parts.items():
            by_part[part] = _find_classes(scanner, name, part, where)
        _skip_unlabelled(scanner, by_part)
    else:
        by_part["train"] = _find_classes(scanner, "", "train", where)
    images = scanner.gather(
        *([folder for folders in classes.folders.values() for folder in folders] for classes in by_part.values() if classes is not None)
    )
    listed = {part: None if classes is None else _images(classes, images) for part, classes in by_part.items()}
    notes = [] if parts else _class_like_a_part(scanner, by_part["train"])
    first = next(classes for classes in by_part.values() if classes is not None)
    return Listing(
        where,
        tuple(first.names),
        listed["train"] or {},
        listed["val"],
        listed["test"],
        FolderSource(scanner.root),
        skipped=tuple(entry for entry in scanner.skipped.values() if entry.name != BOXES_FILE),
        notes=tuple(notes),
        folders={part: printable(classes.place) for part, classes in by_part.items() if classes is not None and parts},
    )


def _class_like_a_part(scanner: Scanner, classes: _Classes | None) -> list[str]:
    """Return a remark for each class whose name and subfolders suggest that it could also be a part."""
    return [
        f"{printable(folder)} is treated as a class, since there are other classes next to it: use {printable(folder)} as the data set"
        " if it holds the classes"
        for name, folders in (classes.folders.items() if classes else ())
        for folder in folders
        if part_name(name) is not None and len(_with_images(scanner, folder)) > 1
    ]


def _images(classes: _Classes, by_folder: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    if not classes.folders:
        return {name: list(classes.flat[name]) for name in classes.names}
    return {name: sorted(image for folder in classes.folders[name] for image in by_folder[folder]) for name in classes.names}


def _unwrapped(scanner: Scanner, top: str, where: str) -> str:
    """Return the folder that contains the data set, after descending through wrapping folders.

    A folder is descended into if it is the only one with images, or the only one divided into parts.

    Raises:
        DatasetError: several folders are divided into parts.
    """
    while not _part_folders(scanner, top, where):
        divided = [name for name in _with_images(scanner, top) if _is_divided(scanner, join(top, name), where)]
        if len(divided) > 1:
            raise DatasetError(
                f"{where}: holds several data sets, {', '.join(map(printable, divided))}, each with a train folder: use one of them"
            )
        chosen = divided[0] if divided else _only(scanner, top)
        if chosen is None:
            return top
        scanner.note(top, images="is next to the data set's folder")
        for name in scanner.look(top).folders:
            if name != chosen:
                scanner.skip(join(top, name), f"is next to {printable(chosen)}, which holds the data set", is_folder=True)
        top = join(top, chosen)
    return top


def _only(scanner: Scanner, top: str) -> str | None:
    """Return the name of the only folder in `top` that holds images, if that folder holds classes; None otherwise."""
    inner = _with_images(scanner, top)
    if len(inner) != 1 or _are_flat(scanner.look(top).images):
        return None
    child = join(top, inner[0])
    return inner[0] if _with_images(scanner, child) or _are_flat(scanner.look(child).images) else None


def _is_divided(scanner: Scanner, folder: str, where: str) -> bool:
    parts = _part_folders(scanner, folder, where)
    return "train" in parts and len(parts) > 1


def _part_folders(scanner: Scanner, top: str, where: str) -> dict[str, str]:
    """Return the folder path of each part; empty if `top` is not divided into parts.

    Raises:
        DatasetError: two folders match the same part.
    """
    groups: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in scanner.look(top).folders:
        parsed = part_name(name)
        if parsed is not None:
            groups[parsed.rest][parsed.word].append(name)
    for rest, words in sorted(groups.items()):  # names without additional words come first
        by_part = _assign(words)
        holding = [part for part, names in by_part.items() if any(_holds_classes(scanner, join(top, name)) for name in names)]
        if not holding or (rest and not ("train" in holding and len(by_part) > 1)):
            continue
        if len(by_part) == 1 and _has_other_classes(scanner, top, next(iter(by_part.values()))):
            continue
        for part, names in by_part.items():
            if len(names) > 1:
                first, second = map(printable, names[:2])
                raise DatasetError(f"{where}: both {first} and {second} could be the {part} part: keep one")
        return {part: join(top, by_part[part][0]) for part in _PARTS if part in by_part}
    return {}


def _assign(words: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Assign folders to parts by name. `eval` becomes the validation part, or the test part if a validation part already exists."""
    by_part = {part: list(words[part]) for part in _PARTS if part in words}
    if "eval" in words:
        free = next((part for part in ("val", "test") if part not in by_part), None)
        if free is not None:
            by_part[free] = list(words["eval"])
    return by_part


def _has_other_classes(scanner: Scanner, top: str, part: Sequence[str]) -> bool:
    """Return True if other class folders are next to the only folder named like a part, so that this folder is itself a class.

    A sibling folder that shares classes with it is another part, and a sibling named like an unlabelled or evaluation part is not a
    class. Neither counts.
    """
    own = {label(name) for folder in part for name in _with_images(scanner, _inside(scanner, join(top, folder)))}
    for name in _with_images(scanner, top):
        parsed = part_name(name)
        if name in part or (parsed is not None and parsed.word in ("unlabelled", "eval")):
            continue
        if not own & {label(child) for child in _with_images(scanner, join(top, name))}:
            return True
    return False


def _holds_classes(scanner: Scanner, folder: str) -> bool:
    return bool(_with_images(scanner, folder)) or _are_flat(scanner.look(folder).images)


def _inside(scanner: Scanner, folder: str) -> str:
    """Return the folder that contains a part's classes, for example `train/train` for `train/train/<class>`."""
    while (only := _only(scanner, folder)) is not None:
        scanner.note(folder, images=_NEXT_TO_CLASSES)
        folder = join(folder, only)
    return folder


def _find_classes(scanner: Scanner, folder: str, part: str, where: str) -> _Classes | None:
    """Return the classes in a part's folder; None for a test or validation folder that can be skipped because it has no classes.

    Raises:
        DatasetError: a folder that needs classes has none, or two folders map to the same class name.
    """
    place = _inside(scanner, folder)
    entries = scanner.look(place)
    folders: dict[str, list[str]] = defaultdict(list)
    for name in _class_folders(scanner, place):
        folders[label(name)].append(name)
    if folders and (any(scanner.holds_images(join(place, name)) for names in folders.values() for name in names) or not entries.images):
        for class_name, names in folders.items():
            if len({same_name(name) for name in names}) > 1:
                raise DatasetError(f"{where}: two folders would both be the class {class_name}: rename one")
        scanner.note(place, images=_NEXT_TO_CLASSES)
        return _Classes(place, {class_name: [join(place, name) for name in names] for class_name, names in folders.items()}, {})
    if _are_flat(entries.images):
        scanner.note(place)
        flat: dict[str, list[str]] = defaultdict(list)
        for name in entries.images:
            matched = _FLAT.fullmatch(name)
            assert matched is not None  # checked by `_are_flat`
            flat[label(matched[1])].append(join(place, name))
        return _Classes(place, {}, flat)
    if part == "test" or (part == "val" and not entries.images and not _holds_unread(scanner, place)):
        reason = f"{len(entries.images):,} images without class folders: unlabelled" if entries.images else "holds no images"
        scanner.skip(folder, reason, is_folder=True)
        return None
    location = f"in {printable(folder)}: " if folder else ""
    content = f"{len(entries.images):,} images, but no class folders" if entries.images else "neither images nor class folders"
    first = next(iter(entries.skipped), None)
    hint = f" (left out: {printable(first.name)}: {first.reason})" if first is not None and not entries.images else ""
    raise DatasetError(f"{where}: {location}{content}{hint}: {LAYOUT}")


def _class_folders(scanner: Scanner, place: str) -> list[str]:
    """Return the names of the class folders in `place`, and record why each other folder was skipped."""
    names = scanner.look(place).folders
    with_images = set(_with_images(scanner, place))
    classes = []
    for name in names:
        folder = join(place, name)
        if name not in with_images:
            skipped = scanner.below(folder)
            if skipped and not any(entry.unread_image for entry in skipped):
                scanner.skip(folder, f"holds no images (but {printable(skipped[0].name.rpartition('/')[2])})", is_folder=True)
                continue
        elif _is_copy(scanner, folder, with_images - {name}):
            scanner.skip(folder, "holds folders with the same names as those next to it: a copy, or masks", is_folder=True)
            continue
        classes.append(name)
    return classes


def _is_copy(scanner: Scanner, folder: str, siblings: set[str]) -> bool:
    inner = set(_with_images(scanner, folder))
    return not scanner.look(folder).images and len(inner & siblings) >= 2 and 2 * len(inner & siblings) >= len(inner)


def _skip_unlabelled(scanner: Scanner, by_part: dict[str, _Classes | None]) -> None:
    """Skip a test part whose only class is not a class of the training part, as in `test/unknown/1.jpg`."""
    train, test = by_part["train"], by_part["test"]
    if train is not None and test is not None and len(test.names) == 1 and test.names[0] not in train.names:
        reason = f"its only folder {test.names[0]} is not a class of {printable(train.place)}: unlabelled"
        scanner.skip(test.place, reason, is_folder=True)
        by_part["test"] = None


def _holds_unread(scanner: Scanner, folder: str) -> bool:
    return any(entry.unread_image for entry in scanner.below(folder))


def _with_images(scanner: Scanner, folder: str) -> list[str]:
    """Return the names of the subfolders of `folder` that contain images at any depth."""
    return [name for name in scanner.look(folder).folders if scanner.holds_images(join(folder, name))]


def _are_flat(images: Sequence[str]) -> bool:
    return bool(images) and all(_FLAT.fullmatch(name) for name in images)
