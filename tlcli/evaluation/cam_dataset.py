"""The images that maps are judged on: of which classes, and where in them the objects are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path

from tlcli.contract.errors import DatasetError, ImageError
from tlcli.contract.files.display_name import same_name
from tlcli.contract.images.find_images import Skipped
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.model.labels import LabelIndex
from tlcli.evaluation.ground_truth import MASKS_FOLDER, Truth
from tlcli.evaluation.perturbation import Bytes, Flags
from tlcli.training.data.dataset import LeftOut, Source
from tlcli.training.data.folder_source import FolderSource
from tlcli.training.data.listing import Listing, one_line
from tlcli.training.data.load import list_dataset
from tlcli.training.data.split import shuffled
from tlcli.training.runtime.progress import ProgressFactory, silent
from tlcli.training.settings.config import FinetuneConfig, default_data_dir


@dataclass(frozen=True)
class Sample:
    """An image as the network sees it.

    name: its path below the data set's folder.
    number: its place in the order of `Images`, broken ones not counted.
    class_name: what the data set calls its class.
    image: the input, `[H, W, 3]`.
    region: where the object is in it, `[H, W]`, perhaps nowhere; None if that is not known.
    """

    name: str
    number: int
    class_name: str
    image: Bytes
    region: Flags | None


@dataclass
class Images:
    """Images to judge maps on, read one at a time.

    where: the data set, as messages call it.
    part: `test`, or `all` where there is no test part.
    classes: the data set's.
    wanted: how many of `names` are to be read: broken ones are replaced by those that follow.
    names, of: every image in the order in which it is read, and its class.
    left_out: the broken ones that have been met.
    skipped: files that are no images and folders that are no classes.
    """

    where: str
    part: str
    classes: tuple[str, ...]
    wanted: int
    names: tuple[str, ...]
    of: tuple[str, ...]
    source: Source
    truth: Truth | None
    left_out: list[LeftOut] = field(default_factory=list)
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return min(self.wanted, len(self.names))

    def read(self, preprocessing: Preprocessing) -> Iterator[Sample]:
        """The images through a model's preprocessing, at most `wanted`.

        Raises:
            DatasetError: none of them can be read.
        """
        self.left_out.clear()
        number = 0
        for name, class_name in zip(self.names, self.of, strict=True):
            if number == self.wanted:
                return
            try:
                image = self.source.load(name)
                region = self.truth.region(name, image.size, preprocessing) if self.truth is not None else None
            except ImageError as error:
                self.left_out.append(LeftOut(name, str(error)))
                continue
            yield Sample(name, number, class_name, preprocessing.apply(image), region)
            number += 1
        if number == 0:
            raise DatasetError(f"{self.where}: none of its {len(self.names):,} images can be read; {self.left_out[0].reason}")


def open_images(spec: str, limit: int, seed: int, data_dir: Path | None = None, progress: ProgressFactory = silent) -> Images:
    """Find the images: the test part if there is one, else all.

    Args:
        spec: a known name, a folder, or a timm spec, as `tlcli.training.load_dataset` takes them.
        limit: how many images, spread evenly over the classes.
        seed: which ones; and of the data set, where it is drawn.
        data_dir: where known data sets are kept.
        progress: told of downloads.

    Raises:
        DatasetError: no such data set, or one without images.
        HubError: it is not here and cannot be downloaded.
    """
    config = FinetuneConfig(dataset=spec, seed=seed, data_dir=data_dir or default_data_dir())
    listing = without_masks(list_dataset(config, progress))
    parts = [listing.test] if listing.test is not None else [part for part in (listing.train, listing.val) if part is not None]
    classes = all_classes(listing, parts)
    by_class = {name: [image for part in parts for image in part.get(name, ())] for name in classes}
    drawn = _spread(by_class, seed)
    if not drawn:
        raise DatasetError(f"{listing.where}: no images in it: add some, a folder a class")
    return Images(
        where=listing.where,
        part="all" if listing.test is None else "test",
        classes=classes,
        wanted=limit,
        names=tuple(name for name, _ in drawn),
        of=tuple(class_name for _, class_name in drawn),
        source=listing.source,
        truth=Truth.find(listing.source.root) if isinstance(listing.source, FolderSource) else None,
        skipped=listing.skipped,
    )


def all_classes(listing: Listing, parts: Iterable[Mapping[str, Sequence[str]]]) -> tuple[str, ...]:
    """Return the data set's classes, and those that only some of `parts` have: a test folder may know more than its train folder."""
    more = dict.fromkeys(name for part in parts for name in part if name not in listing.classes)
    masks = MASKS_FOLDER if MASKS_FOLDER in more and isinstance(listing.source, FolderSource) else None
    return (*listing.classes, *(name for name in sorted(more) if name != masks))


def label_ids(classes: Sequence[str], labels: Sequence[str], where: str, otherwise: str = "") -> dict[str, int]:
    """The model's class for each class of the data set, by name (NFC); if not to the letter, then in any case of letters.

    otherwise: what else the user could do.

    Raises:
        DatasetError: a class that the model does not have, or of a label that several of its classes share.
    """
    exact = LabelIndex(labels)
    folded = {same_name(label).casefold(): index for index, label in reversed(list(enumerate(labels)))}
    found: dict[str, int | None] = {}
    for name in classes:
        ids = exact.find(name)
        if len(ids) > 1:
            raise DatasetError(
                f"{where}: class {name!r}: {len(ids)} classes of the model have this label (ids {', '.join(map(str, ids))}), so its images"
                f" belong to neither: leave the folder out{otherwise}"
            )
        found[name] = ids[0] if ids else folded.get(same_name(name).casefold())
    unknown = [name for name, index in found.items() if index is None]
    if unknown:
        raise DatasetError(
            f"{where}: the model has no class {one_line(unknown)}; it has: {one_line(labels)}: rename the folders{otherwise}"
        )
    return {name: index for name, index in found.items() if index is not None}


def _spread(by_class: dict[str, list[str]], seed: int) -> list[tuple[str, str]]:
    """All images with their classes: a random one of each class, then another of each, until none is left.

    So any number of them, from the first on, is spread over the classes as evenly as can be.
    """
    rounds = zip_longest(
        *(
            [(name, class_name) for name in shuffled(by_class[class_name], seed, class_name)]
            for class_name in shuffled(list(by_class), seed, "")
        )
    )
    return [image for image in chain.from_iterable(rounds) if image is not None]


def without_masks(listing: Listing) -> Listing:
    """Masks that lie beside the folders of classes are no class."""
    if not isinstance(listing.source, FolderSource) or MASKS_FOLDER not in listing.classes:
        return listing
    masks = listing.source.root / MASKS_FOLDER
    if not any((masks / name).is_dir() for name in listing.classes if name != MASKS_FOLDER):
        return listing
    classes = tuple(name for name in listing.classes if name != MASKS_FOLDER)
    return dataclasses.replace(listing, classes=classes)
