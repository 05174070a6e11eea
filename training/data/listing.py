"""What a data set offers before any image has been read, and the choice of classes from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tlcli.contract.errors import DatasetError
from tlcli.contract.files.display_name import label, printable, same_name
from tlcli.contract.images.find_images import Skipped
from tlcli.training.data.dataset import Source

Images = Mapping[str, Sequence[str]]
"""Class to the names of its images."""

LAYOUT = "expected <class>/<image>, or train/<class>/<image> with val and test beside it, or <class>.<number>.jpg"

_LISTED = 100
"""More classes than this are not all listed in a message."""


@dataclass(frozen=True)
class Listing:
    """The images of a data set by name.

    where: the data set, as messages call it.
    classes: in the order of their labels.
    train, val, test: the parts as the data set gives them; `val` None: to be taken out of `train`. `train` is empty where there is none.
    source: loads the images.
    skipped: files that are no images and folders that are no classes, below the folder that was given.
    folders: part to the folder that holds its classes, where there are such folders.
    notes: what a reader should know of how the folders were taken, a line each.
    top: the folder below the one that was given in which all this was found, if it is another.
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
        """The parts there are."""
        named = {"train": self.train or None, "val": self.val, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}

    @property
    def layout(self) -> str:
        """Which folder is which part, in one line; empty where the classes lie in the folder that was given."""
        below = f"in {self.top}: " if self.top else ""
        parts = ", ".join(f"{part} from {folder}" for part, folder in self.folders.items())
        return below + (parts or "no parts") if self.top or self.folders else ""


def choose_classes(listing: Listing, subset: Sequence[str] | None, num_classes: int | None) -> tuple[str, ...]:
    """The classes to train on, in the order of their labels, every one with images in every part.

    Args:
        listing: what there is.
        subset: the classes wanted, in any case of letters; None for all.
        num_classes: how many are expected, if somebody said so.

    Raises:
        DatasetError: an unknown class, one class only, another number than expected, a part that lacks a class
            or has one more, a class without images.
    """
    if not listing.train:
        there = " and ".join(printable(folder) for folder in listing.folders.values())
        raise DatasetError(f"{listing.where}: no train folder, only {there}: {LAYOUT}")
    classes = listing.classes if subset is None else _subset(listing, subset)
    if len(classes) < 2:
        raise DatasetError(f"{listing.where}: at least two classes were expected, {len(classes)} came ({one_line(classes)}): add another")
    if num_classes is not None and num_classes != len(classes):
        raise DatasetError(
            f"{listing.where}: --num-classes {num_classes} was given, but there are {len(classes)} ({one_line(classes)}):"
            " leave it out, or choose with --classes"
        )
    for part, images in listing.parts.items():
        _check_part(listing, part, images, classes, complete=subset is None)
    return classes


def one_line(names: Iterable[str]) -> str:
    """Names for a message: all of them, unless they are very many."""
    listed = list(names)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more


def _subset(listing: Listing, subset: Sequence[str]) -> tuple[str, ...]:
    by_folded = {name.casefold(): name for name in reversed(listing.classes)} | {name: name for name in listing.classes}
    chosen: list[str] = []
    for wanted in map(same_name, subset):
        found = by_folded.get(wanted) or by_folded.get(wanted.casefold())
        if found is None:
            raise DatasetError(f"{listing.where}: no class {wanted!r} (--classes); it has: {one_line(listing.classes)}")
        if found in chosen:
            raise DatasetError(f"{listing.where}: class {found!r} is named twice (--classes): name it once")
        chosen.append(found)
    return tuple(chosen)


def _check_part(listing: Listing, part: str, images: Images, classes: Sequence[str], complete: bool) -> None:
    missing = [name for name in classes if name not in images]
    if missing:
        raise DatasetError(f"{listing.where}: its {part} part lacks the class {one_line(missing)}: every part needs the classes of train")
    extra = [name for name in images if name not in classes]
    if extra and complete:
        raise DatasetError(
            f"{listing.where}: its {part} part has a class that train lacks, {one_line(extra)}: remove it, or add it to train"
        )
    empty = [name for name in classes if not images[name]]
    if empty:
        raise DatasetError(
            f"{listing.where}: no image of the class {one_line(empty)} in its {part} part{_why_empty(listing, empty)}: add images,"
            " remove the class's folder, or choose others with --classes"
        )


def _why_empty(listing: Listing, classes: Sequence[str]) -> str:
    """Return what was left out of the folder of one of the classes, as a part of a message."""
    for one in listing.skipped:
        if any(label(folder) in classes for folder in one.name.split("/")):
            return f" (left out: {printable(one.name)}: {one.reason})"
    return ""
