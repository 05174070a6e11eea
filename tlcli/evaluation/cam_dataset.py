"""Data set for evaluating maps: images with their classes and object positions."""

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
    """Preprocessed image with its class and object position.

    name: path of the image relative to the data set's folder.
    number: index of the image in `Images`, not counting images that could not be read.
    class_name: name of the image's class in the data set.
    image: input image, `[H, W, 3]`.
    region: mask of the object in the input, `[H, W]`; all False if the object is cropped away, None if unknown.
    """

    name: str
    number: int
    class_name: str
    image: Bytes
    region: Flags | None


@dataclass
class Images:
    """Images for evaluating maps, read one at a time.

    where: data set name shown in messages.
    part: `test`, or `all` if there is no test split.
    classes: classes of the data set.
    limit: maximum number of images to read. Images that cannot be read are replaced by the next ones.
    names, class_names: names and classes of all images in reading order.
    truth: boxes and masks; None if the data set has neither.
    left_out: images that could not be read so far.
    skipped: files that are not images and folders that are not classes.
    """

    where: str
    part: str
    classes: tuple[str, ...]
    limit: int
    names: tuple[str, ...]
    class_names: tuple[str, ...]
    source: Source
    truth: Truth | None
    left_out: list[LeftOut] = field(default_factory=list)
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return min(self.limit, len(self.names))

    def read(self, preprocessing: Preprocessing) -> Iterator[Sample]:
        """Yield up to `limit` images, preprocessed for a model.

        Raises:
            DatasetError: none of the images can be read.
        """
        self.left_out.clear()
        number = 0
        for name, class_name in zip(self.names, self.class_names, strict=True):
            if number == self.limit:
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


def open_images(
    spec: str,
    limit: int,
    seed: int,
    data_dir: Path | None = None,
    progress: ProgressFactory = silent,
    columns: Mapping[str, str] | None = None,
) -> Images:
    """Find the images of a data set: those of the test split if there is one, and otherwise all images.

    Args:
        spec: name of a known data set, path of a folder or of a label file, or timm spec, as accepted by `tlcli.training.load_dataset`.
        limit: maximum number of images, spread evenly over the classes.
        seed: seed for the choice of images and for a generated data set.
        data_dir: folder that holds the known data sets.
        progress: progress display for downloads.
        columns: names of a label file's columns; see `FinetuneConfig`.

    Raises:
        DatasetError: the data set does not exist or holds no images.
        HubError: the data set is not in `data_dir` and cannot be downloaded.
    """
    config = FinetuneConfig(dataset=spec, seed=seed, data_dir=data_dir or default_data_dir(), columns=dict(columns or {}))
    listing = without_masks(list_dataset(config, progress))
    if listing.labels is not None:
        raise DatasetError(f"{listing.where}: images have several labels, and evaluate-cam explains one in each: use another data set")
    parts = [listing.test] if listing.test is not None else [part for part in (listing.train, listing.val) if part is not None]
    classes = all_classes(listing, parts)
    by_class = {name: [image for part in parts for image in part.get(name, ())] for name in classes}
    ordered = _interleaved(by_class, seed)
    if not ordered:
        raise DatasetError(f"{listing.where}: contains no images: add some, in one folder per class")
    return Images(
        where=listing.where,
        part="all" if listing.test is None else "test",
        classes=classes,
        limit=limit,
        names=tuple(name for name, _ in ordered),
        class_names=tuple(class_name for _, class_name in ordered),
        source=listing.source,
        truth=Truth.find(listing.source.root) if isinstance(listing.source, FolderSource) else None,
        skipped=listing.skipped,
    )


def all_classes(listing: Listing, parts: Iterable[Mapping[str, Sequence[str]]]) -> tuple[str, ...]:
    """Return the data set's classes followed by classes that occur only in `parts`.

    A test folder may have more classes than the train folder.
    """
    more = dict.fromkeys(name for part in parts for name in part if name not in listing.classes)
    masks = MASKS_FOLDER if MASKS_FOLDER in more and isinstance(listing.source, FolderSource) else None
    return (*listing.classes, *(name for name in sorted(more) if name != masks))


def label_ids(
    classes: Sequence[str], labels: Sequence[str], where: str, alternative: str = "", *, is_label_file: bool = False
) -> dict[str, int]:
    """Return the model's class id for each class of the data set.

    Classes are matched by NFC-normalised name, first exactly and then ignoring case.

    Args:
        classes: classes of the data set.
        labels: labels of the model.
        where: data set name shown in messages.
        alternative: alternative remedy appended to error messages.
        is_label_file: True if the classes are the labels of a label file, False if they are folders.

    Raises:
        DatasetError: the model lacks a class, or several of the model's classes share its label.
    """
    exact = LabelIndex(labels)
    folded = {same_name(label).casefold(): index for index, label in reversed(list(enumerate(labels)))}
    matches: dict[str, int | None] = {}
    for name in classes:
        ids = exact.find(name)
        if len(ids) > 1:
            raise DatasetError(
                f"{where}: class {name!r}: {len(ids)} classes of the model have this label (ids {', '.join(map(str, ids))}), so its images"
                f" belong to neither: leave the {'rows' if is_label_file else 'folder'} out{alternative}"
            )
        matches[name] = ids[0] if ids else folded.get(same_name(name).casefold())
    unknown = [name for name, index in matches.items() if index is None]
    if unknown:
        things = "labels" if is_label_file else "folders"
        raise DatasetError(
            f"{where}: the model has no class {one_line(unknown)}; it has: {one_line(labels)}: rename the {things}{alternative}"
        )
    return {name: index for name, index in matches.items() if index is not None}


def _interleaved(by_class: dict[str, list[str]], seed: int) -> list[tuple[str, str]]:
    """Return all images with their classes, interleaved by class in random order.

    Each round takes one random image of every class until none are left. Any prefix of the list is therefore spread over the classes as
    evenly as possible.
    """
    rounds = zip_longest(
        *(
            [(name, class_name) for name in shuffled(by_class[class_name], seed, class_name)]
            for class_name in shuffled(list(by_class), seed, "")
        )
    )
    return [image for image in chain.from_iterable(rounds) if image is not None]


def without_masks(listing: Listing) -> Listing:
    """Remove the masks folder from the classes of a listing, if it is next to the class folders and has subfolders of their names."""
    if not isinstance(listing.source, FolderSource) or MASKS_FOLDER not in listing.classes:
        return listing
    masks = listing.source.root / MASKS_FOLDER
    if not any((masks / name).is_dir() for name in listing.classes if name != MASKS_FOLDER):
        return listing
    classes = tuple(name for name in listing.classes if name != MASKS_FOLDER)
    return dataclasses.replace(listing, classes=classes)
