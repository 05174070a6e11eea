"""Listing of a data set's images by part and class, built before any image is read, and the selection of classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tlcli.contract.errors import DatasetError
from tlcli.contract.files.display_name import label, printable, same_name
from tlcli.contract.images.find_images import Skipped
from tlcli.training.data.dataset import Source

Images = Mapping[str, Sequence[str]]
"""Image names by class."""

LAYOUT = "expected <class>/<image>, or train/<class>/<image> with val and test next to train, or <class>.<number>.jpg"

_LISTED = 100
"""Maximum number of classes listed in a message."""


@dataclass(frozen=True)
class Listing:
    """Images of a data set by part and class.

    where: name of the data set in messages.
    classes: class names, indexed by label.
    train, val, test: parts of the data set. `val` is None if it must be split off `train`; `train` is empty if there is no training part.
    source: source that loads the images.
    skipped: files that are not images and folders that are not classes, below the user's folder.
    folders: folder that contains the classes of each part; empty if the data set is not divided into part folders.
    notes: remarks on how the folders were interpreted, one line each.
    top: subfolder of the user's folder that contains the data set; empty for the folder itself.
    is_label_file: True if a label file names the images.
    groups: group of each image; None if no image has one. Groups are kept together in splits. group_column: column of the groups.
    weights: weight of each image in the training loss; None if all weigh the same.
    labels: labels of each image, if images have several; a class then lists each image that has its label. None for one label per image.
    unlabelled: images without any label by part, only with several labels per image.
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
    is_label_file: bool = False
    groups: Mapping[str, str] | None = None
    group_column: str = ""
    weights: Mapping[str, float] | None = None
    labels: Mapping[str, tuple[str, ...]] | None = None
    unlabelled: Images = field(default_factory=dict)

    def images_of(self, part: str) -> list[str]:
        """Return the sorted names of all images of a part, each once."""
        return sorted({name for names in self.parts[part].values() for name in names}.union(self.unlabelled.get(part, ())))

    @property
    def parts(self) -> dict[str, Images]:
        """Available parts by name."""
        named = {"train": self.train or None, "val": self.val, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}

    @property
    def layout(self) -> str:
        """One-line summary of the folder of each part; empty if the classes are directly in the user's folder."""
        below = f"in {self.top}: " if self.top else ""
        parts = ", ".join(f"{part} from {folder}" for part, folder in self.folders.items())
        return below + (parts or "no parts") if self.top or self.folders else ""


def choose_classes(listing: Listing, subset: Sequence[str] | None, num_classes: int | None) -> tuple[str, ...]:
    """Return the classes to train on, in label order. Every class has images in each part.

    Args:
        listing: listing of the data set.
        subset: classes selected by the user, case-insensitive; None for all classes.
        num_classes: expected number of classes; None to skip the check.

    Raises:
        DatasetError: there is no training part, a class is unknown or has no images, the number of classes is below two or not the
            expected one, or the classes of a part differ from those of the training part.
    """
    if not listing.train:
        existing = " and ".join(printable(folder) for folder in listing.folders.values())
        if listing.is_label_file:
            raise DatasetError(
                f"{listing.where}: no row of the training part, only {existing}: expected rows with the split train, or with none"
            )
        raise DatasetError(f"{listing.where}: no train folder, only {existing}: {LAYOUT}")
    classes = listing.classes if subset is None else _subset(listing, subset)
    if len(classes) < 2:
        raise DatasetError(f"{listing.where}: expected at least two classes, found {len(classes)} ({one_line(classes)}): add another class")
    if num_classes is not None and num_classes != len(classes):
        raise DatasetError(
            f"{listing.where}: --num-classes {num_classes}, but the data set has {len(classes)} ({one_line(classes)}):"
            " leave --num-classes out, or choose classes with --classes"
        )
    for part, images in listing.parts.items():
        _check_part(listing, part, images, classes, complete=subset is None)
    return classes


def one_line(names: Iterable[str]) -> str:
    """Join names for a message, listing at most 100 of them."""
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
            raise DatasetError(f"{listing.where}: --classes contains {class_name!r} twice: remove one")
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
    """Return a message suffix that names the first file skipped in a folder of `classes`; empty if there is none."""
    for entry in listing.skipped:
        if any(label(folder) in classes for folder in entry.name.split("/")):
            return f" (left out: {printable(entry.name)}: {entry.reason})"
    return ""
