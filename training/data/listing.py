"""Listing of a data set's images by part and class, before any image is read, and the choice of classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tlcli.contract.errors import DatasetError
from tlcli.contract.files.display_name import label, printable, same_name
from tlcli.contract.images.find_images import Skipped
from tlcli.training.data.dataset import Source

Images = Mapping[str, Sequence[str]]
"""Names of the images of each class."""

LAYOUT = "expected <class>/<image>, or train/<class>/<image> with val and test next to train, or <class>.<number>.jpg"

_LISTED = 100
"""Maximum number of classes listed in a message."""


@dataclass(frozen=True)
class Listing:
    """Images of a data set by part and class.

    where: name of the data set in messages.
    classes: names of the classes, in the order of their labels.
    train, val, test: parts of the data set. `val` is None if it has to be split off `train`; `train` is empty without a training part.
    source: source of the images.
    skipped: files that are not images, and folders that are not classes, below the user's folder.
    folders: folder that holds the classes of each part, if the parts are folders.
    notes: remarks on how the folders were interpreted, one line each.
    top: subfolder of the user's folder that holds the data set; empty for the folder itself.
    """

    where: str
    classes: tuple[str, ...]
    train: Images
    val: Images | None
    test: Images | None
    source: Source
    skipped: tuple[Skipped, ...] = ()
    folders: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    top: str = ""

    @property
    def parts(self) -> dict[str, Images]:
        """Existing parts by name."""
        named = {"train": self.train or None, "val": self.val, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}

    @property
    def layout(self) -> str:
        """Folder of each part, in one line; empty if the classes are in the user's folder itself."""
        below = f"in {self.top}: " if self.top else ""
        parts = ", ".join(f"{part} from {folder}" for part, folder in self.folders.items())
        return below + (parts or "no parts") if self.top or self.folders else ""


def choose_classes(listing: Listing, subset: Sequence[str] | None, num_classes: int | None) -> tuple[str, ...]:
    """Return the classes to train on, in the order of their labels; each has images in every part.

    Args:
        listing: listing of the data set.
        subset: the user's classes, case-insensitive; None for all classes.
        num_classes: expected number of classes, or None.

    Raises:
        DatasetError: a class is unknown or has no images, there is only one class or not the expected number, or the classes of a part
            differ from those of the training part.
    """
    if not listing.train:
        existing = " and ".join(printable(folder) for folder in listing.folders.values())
        raise DatasetError(f"{listing.where}: no train folder, only {existing}: {LAYOUT}")
    classes = listing.classes if subset is None else _subset(listing, subset)
    if len(classes) < 2:
        raise DatasetError(f"{listing.where}: expected at least two classes, found {len(classes)} ({one_line(classes)}): add another class")
    if num_classes is not None and num_classes != len(classes):
        raise DatasetError(
            f"{listing.where}: --num-classes {num_classes}, but the data set has {len(classes)} ({one_line(classes)}):"
            " leave it out, or choose classes with --classes"
        )
    for part, images in listing.parts.items():
        _check_part(listing, part, images, classes, complete=subset is None)
    return classes


def one_line(names: Iterable[str]) -> str:
    """Join names for a message, abridged after the first 100."""
    listed = list(names)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more


def _subset(listing: Listing, subset: Sequence[str]) -> tuple[str, ...]:
    by_folded = {name.casefold(): name for name in reversed(listing.classes)} | {name: name for name in listing.classes}
    chosen: list[str] = []
    for name in map(same_name, subset):
        class_name = by_folded.get(name) or by_folded.get(name.casefold())
        if class_name is None:
            raise DatasetError(f"{listing.where}: no class {name!r} (--classes): choose from {one_line(listing.classes)}")
        if class_name in chosen:
            raise DatasetError(f"{listing.where}: class {class_name!r} is given twice (--classes): give it once")
        chosen.append(class_name)
    return tuple(chosen)


def _check_part(listing: Listing, part: str, images: Images, classes: Sequence[str], complete: bool) -> None:
    missing = [name for name in classes if name not in images]
    if missing:
        raise DatasetError(f"{listing.where}: the {part} part lacks the class {one_line(missing)}: every part needs the classes of train")
    extra = [name for name in images if name not in classes]
    if extra and complete:
        raise DatasetError(
            f"{listing.where}: the {part} part has a class that train lacks, {one_line(extra)}: remove it, or add it to train"
        )
    empty = [name for name in classes if not images[name]]
    if empty:
        raise DatasetError(
            f"{listing.where}: no image of the class {one_line(empty)} in the {part} part{_why_empty(listing, empty)}: add images,"
            " remove the class's folder, or choose other classes with --classes"
        )


def _why_empty(listing: Listing, classes: Sequence[str]) -> str:
    """Return a phrase for a message, naming a file that was left out of the folder of one of the classes."""
    for entry in listing.skipped:
        if any(label(folder) in classes for folder in entry.name.split("/")):
            return f" (left out: {printable(entry.name)}: {entry.reason})"
    return ""
