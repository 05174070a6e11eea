"""Folders of images as people have them: `<class>/<image>`, divided into parts or not, wrapped or not; and `<class>.<number>.jpg`.

Names alone do not tell. `train` with folders of classes in it is a part; `train` with images in it, or beside other classes, is a class.
Whatever is left out is named: see `Listing.skipped`.
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
"""Kaggle's way: `cat.0.jpg`, the class before the number."""

_PARTS = ("train", "val", "test")

_BESIDE = "lies beside the folders of classes"


@dataclass(frozen=True)
class _Classes:
    """The classes of a part. place: the folder that holds them. folders: class to its folders. flat: class to images, where it has none."""

    place: str
    folders: Mapping[str, Sequence[str]]
    flat: Mapping[str, Sequence[str]]

    @property
    def names(self) -> list[str]:
        return sorted(self.folders or self.flat)


def list_folder(folder: Path, where: str | None = None) -> Listing:
    """Return the images of a folder, by part and class. No image with a known suffix is opened.

    Classes are folders, sorted by name; images may lie deeper. `train` is empty where there is only a test or a validation folder.

    Args:
        folder: an existing folder.
        where: what messages call it; the folder itself by default.

    Raises:
        DatasetError: no known layout, or a folder that cannot be listed.
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
        inner, skipped=(*outer, *(dataclasses.replace(one, name=join(top, one.name)) for one in inner.skipped)), top=printable(top)
    )


def _list(scanner: Scanner, where: str) -> Listing:
    parts = _part_folders(scanner, "", where)
    found: dict[str, _Classes | None] = dict.fromkeys(_PARTS)
    if parts:
        scanner.note("", images="lies beside the folders of parts")
        for name in scanner.look("").folders:
            if name not in parts.values():
                scanner.skip(name, "not a training, validation or test folder", is_folder=True)
        for part, name in parts.items():
            found[part] = _find_classes(scanner, name, part, where)
        _leave_unlabelled(scanner, found)
    else:
        found["train"] = _find_classes(scanner, "", "train", where)
    images = scanner.gather(
        *([folder for folders in of_part.folders.values() for folder in folders] for of_part in found.values() if of_part is not None)
    )
    listed = {part: None if of_part is None else _images(of_part, images) for part, of_part in found.items()}
    notes = [] if parts else _class_like_a_part(scanner, found["train"])
    first = next(of_part for of_part in found.values() if of_part is not None)
    return Listing(
        where,
        tuple(first.names),
        listed["train"] or {},
        listed["val"],
        listed["test"],
        FolderSource(scanner.root),
        skipped=tuple(one for one in scanner.skipped.values() if one.name != BOXES_FILE),
        notes=tuple(notes),
        folders={part: printable(of_part.place) for part, of_part in found.items() if of_part is not None and parts},
    )


def _class_like_a_part(scanner: Scanner, classes: _Classes | None) -> list[str]:
    """Return a line for each class that could be a part: by its name, and by the folders in it."""
    return [
        f"{printable(folder)} is taken for a class, since others lie beside it: give {printable(folder)} itself if it holds the classes"
        for name, folders in (classes.folders.items() if classes else ())
        for folder in folders
        if part_name(name) is not None and len(_with_images(scanner, folder)) > 1
    ]


def _images(classes: _Classes, gathered: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    if not classes.folders:
        return {name: list(classes.flat[name]) for name in classes.names}
    return {name: sorted(image for folder in classes.folders[name] for image in gathered[folder]) for name in classes.names}


def _unwrapped(scanner: Scanner, top: str, where: str) -> str:
    """Return the folder that holds the data set: through single folders, and past what lies beside one that is divided."""
    while not _part_folders(scanner, top, where):
        divided = [name for name in _with_images(scanner, top) if _is_divided(scanner, join(top, name), where)]
        if len(divided) > 1:
            raise DatasetError(
                f"{where}: several data sets in it, {', '.join(map(printable, divided))}, each with a train folder: give one of them"
            )
        chosen = divided[0] if divided else _only(scanner, top)
        if chosen is None:
            return top
        scanner.note(top, images="lies beside the data set's folder")
        for name in scanner.look(top).folders:
            if name != chosen:
                scanner.skip(join(top, name), f"lies beside {printable(chosen)}, which holds the data set", is_folder=True)
        top = join(top, chosen)
    return top


def _only(scanner: Scanner, top: str) -> str | None:
    """Return the one folder in `top` that holds images, if they are those of several classes; else None."""
    inner = _with_images(scanner, top)
    if len(inner) != 1 or _are_flat(scanner.look(top).images):
        return None
    child = join(top, inner[0])
    return inner[0] if _with_images(scanner, child) or _are_flat(scanner.look(child).images) else None


def _is_divided(scanner: Scanner, folder: str, where: str) -> bool:
    parts = _part_folders(scanner, folder, where)
    return "train" in parts and len(parts) > 1


def _part_folders(scanner: Scanner, top: str, where: str) -> dict[str, str]:
    """Return part to the path of its folder; empty if `top` is not divided into parts."""
    groups: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in scanner.look(top).folders:
        says = part_name(name)
        if says is not None:
            groups[says.rest][says.word].append(name)
    for rest, words in sorted(groups.items()):  # "" comes first: names that say nothing but the part
        found = _assign(words)
        holding = [part for part, names in found.items() if any(_holds_classes(scanner, join(top, name)) for name in names)]
        if not holding or (rest and not ("train" in holding and len(found) > 1)):
            continue
        if len(found) == 1 and _has_other_classes(scanner, top, next(iter(found.values()))):
            continue
        for part, names in found.items():
            if len(names) > 1:
                first, second = map(printable, names[:2])
                raise DatasetError(f"{where}: both {first} and {second} would be its {part} part: keep one")
        return {part: join(top, found[part][0]) for part in _PARTS if part in found}
    return {}


def _assign(words: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return part to folders. A folder `eval` is the validation part, or the test part where there is another for validation."""
    found = {part: list(words[part]) for part in _PARTS if part in words}
    if "eval" in words:
        free = next((part for part in ("val", "test") if part not in found), None)
        if free is not None:
            found[free] = list(words["eval"])
    return found


def _has_other_classes(scanner: Scanner, top: str, part: Sequence[str]) -> bool:
    """Check for folders beside the only one that is named like a part which make it one class among others.

    A folder of the same classes is another part, and images without classes beside it may be unlabelled: those are no classes.
    """
    own = {label(name) for folder in part for name in _with_images(scanner, _inside(scanner, join(top, folder)))}
    for name in _with_images(scanner, top):
        says = part_name(name)
        if name in part or (says is not None and says.word in ("unlabelled", "eval")):
            continue
        if not own & {label(child) for child in _with_images(scanner, join(top, name))}:
            return True
    return False


def _holds_classes(scanner: Scanner, folder: str) -> bool:
    return bool(_with_images(scanner, folder)) or _are_flat(scanner.look(folder).images)


def _inside(scanner: Scanner, folder: str) -> str:
    """Return the folder that holds a part's classes: `train/train` for `train/train/<class>`."""
    while (only := _only(scanner, folder)) is not None:
        scanner.note(folder, images=_BESIDE)
        folder = join(folder, only)
    return folder


def _find_classes(scanner: Scanner, folder: str, part: str, where: str) -> _Classes | None:
    """Return the classes in a part's folder; None if it holds none and may.

    Raises:
        DatasetError: no classes, where they are needed.
    """
    place = _inside(scanner, folder)
    entries = scanner.look(place)
    folders: dict[str, list[str]] = defaultdict(list)
    for name in _class_folders(scanner, place):
        folders[label(name)].append(name)
    if folders and (any(scanner.holds_images(join(place, name)) for names in folders.values() for name in names) or not entries.images):
        for called, names in folders.items():
            if len({same_name(name) for name in names}) > 1:
                raise DatasetError(f"{where}: two folders would both be the class {called}: rename one")
        scanner.note(place, images=_BESIDE)
        return _Classes(place, {called: [join(place, name) for name in names] for called, names in folders.items()}, {})
    if _are_flat(entries.images):
        scanner.note(place)
        flat: dict[str, list[str]] = defaultdict(list)
        for name in entries.images:
            matched = _FLAT.fullmatch(name)
            assert matched is not None  # `_are_flat` has said so
            flat[label(matched[1])].append(join(place, name))
        return _Classes(place, {}, flat)
    if part == "test" or (part == "val" and not entries.images and not _holds_unread(scanner, place)):
        what = f"{len(entries.images):,} images without folders of classes: unlabelled" if entries.images else "holds no images"
        scanner.skip(folder, what, is_folder=True)
        return None
    which = f"in {printable(folder)}: " if folder else ""
    what = f"{len(entries.images):,} images, but no folders of classes" if entries.images else "neither images nor folders of classes"
    first = next(iter(entries.skipped), None)
    hint = f" (left out: {printable(first.name)}: {first.reason})" if first is not None and not entries.images else ""
    raise DatasetError(f"{where}: {which}{what}{hint}: {LAYOUT}")


def _class_folders(scanner: Scanner, place: str) -> list[str]:
    """Return the names of the folders in `place` that are classes, and note why the others are not."""
    names = scanner.look(place).folders
    with_images = set(_with_images(scanner, place))
    classes = []
    for name in names:
        folder = join(place, name)
        if name not in with_images:
            left = scanner.below(folder)
            if left and not any(one.unread_image for one in left):
                scanner.skip(folder, f"holds no images (but {printable(left[0].name.rpartition('/')[2])})", is_folder=True)
                continue
        elif _is_copy(scanner, folder, with_images - {name}):
            scanner.skip(folder, "holds folders of the same names as those beside it: a copy, or masks", is_folder=True)
            continue
        classes.append(name)
    return classes


def _is_copy(scanner: Scanner, folder: str, siblings: set[str]) -> bool:
    inner = set(_with_images(scanner, folder))
    return not scanner.look(folder).images and len(inner & siblings) >= 2 and 2 * len(inner & siblings) >= len(inner)


def _leave_unlabelled(scanner: Scanner, found: dict[str, _Classes | None]) -> None:
    """Leave out a test folder with one folder in it that is no class of the others: `test/unknown/1.jpg`."""
    train, test = found["train"], found["test"]
    if train is not None and test is not None and len(test.names) == 1 and test.names[0] not in train.names:
        scanner.skip(test.place, f"its one folder {test.names[0]} is no class of {printable(train.place)}: unlabelled", is_folder=True)
        found["test"] = None


def _holds_unread(scanner: Scanner, folder: str) -> bool:
    return any(one.unread_image for one in scanner.below(folder))


def _with_images(scanner: Scanner, folder: str) -> list[str]:
    """Return the names of the folders in `folder` that hold images, however deep."""
    return [name for name in scanner.look(folder).folders if scanner.holds_images(join(folder, name))]


def _are_flat(images: Sequence[str]) -> bool:
    return bool(images) and all(_FLAT.fullmatch(name) for name in images)
