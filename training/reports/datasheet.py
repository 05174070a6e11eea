"""Data sheet of a run: statistics of its images, and warnings that help to interpret its metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tlcli.contract.files.atomic_file import whole_file
from tlcli.contract.files.display_name import printable
from tlcli.contract.files.earlier_names import IMAGES_FIELD
from tlcli.contract.process.cores import usable_cores
from tlcli.training.data.dataset import Dataset, Part
from tlcli.training.data.image_size import image_size
from tlcli.training.data.listing import one_line
from tlcli.training.features.part_overlap import PartPair
from tlcli.training.settings.run_file_names import DATA_SHEET

FEW_TO_TRAIN, FEW_TO_JUDGE = 10, 5
"""Minimum number of images per class in the training part and in the other parts. Fewer images cause a warning."""

IMBALANCED = 10
"""Ratio of the largest to the smallest class at which class imbalance causes a warning."""

_MOST_MEASURED = 5000
_MOST_LISTED = 100
_MOST_SKIPPED = 1000

_PART_NAMES = {"train": "training", "val": "validation", "test": "test"}


class Spread(BaseModel):
    """Distribution of the widths or heights of images, in pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    smallest: int
    median: float
    largest: int


class Sizes(BaseModel):
    """Sizes of the images after upright rotation.

    measured: number of measured images, which are evenly spaced over all images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    measured: int
    width: Spread
    height: Spread


class Copy(BaseModel):
    """Image whose content also occurs in other images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    name: str
    label: str


class NearCopy(BaseModel):
    """Image outside of the training part that is nearly the same as an image of another part.

    similarity: cosine similarity of their features, centred.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: Copy
    other: Copy
    similarity: float


class Overlap(BaseModel):
    """Overlap between two parts.

    images: number of images in the part `of` that also occur in the part `also_in`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: str
    also_in: str
    images: int = Field(validation_alias=IMAGES_FIELD)


class Unread(BaseModel):
    """Image that could not be read, with the reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    reason: str


class NotRead(BaseModel):
    """File that is not an image or folder that is not a class, with the reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    reason: str
    is_folder: bool


class Groups(BaseModel):
    """Groups of images that were kept together in one part.

    column: column of the label file. parts: number of groups by part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str
    parts: dict[str, int]


class Weights(BaseModel):
    """Weights of the training images in the loss."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    smallest: float
    largest: float


class Origin(BaseModel):
    """Earlier run that a run started from, and what that run had seen.

    run: name of its folder. kept, new, dropped: classes that both know, that it did not know, and that only it knew.
    known: number of images by part that were in its training part; None if it does not record the contents of its images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    kept: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    known: dict[str, int] | None


class DataSheet(BaseModel):
    """Content of `data_sheet.json`.

    images: number of images by part and class, in label order.
    sizes: sizes of the images; None if no image could be measured.
    imbalance: ratio of the largest to the smallest class in the training part.
    duplicates: groups of images with identical content, at most a hundred groups. Groups with different labels come first, then groups
        that span several parts. duplicate_contents: total number of such groups.
    contradictions: number of groups with different labels. overlaps: pairs of parts that share images.
    near_duplicates: pairs of images in two parts that are nearly the same but not identical, at most a hundred out of
        `near_duplicate_count`, which is None if the parts were not compared; see `with_near_duplicates`.
    left_out: images that could not be read.
    skipped: files that are not images and folders that are not classes, folders first; at most a thousand out of `skipped_count`.
    near_uniform: names of images with nearly one colour; at most a hundred out of `near_uniform_count`.
    groups: groups of a label file; None if the images have none. weights: weights of a label file; None if all images weigh the same.
    origin: earlier run that the run started from; None if it started from other weights.
    layout: one-line summary of the folder of each part. warnings: warnings, one line each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    fingerprint: str
    images: dict[str, dict[str, int]] = Field(validation_alias=IMAGES_FIELD)
    sizes: Sizes | None
    imbalance: float
    duplicates: tuple[tuple[Copy, ...], ...]
    duplicate_contents: int
    contradictions: int
    overlaps: tuple[Overlap, ...]
    near_duplicates: tuple[NearCopy, ...] = ()
    near_duplicate_count: int | None = None
    left_out: tuple[Unread, ...]
    skipped: tuple[NotRead, ...] = ()
    skipped_count: int = 0
    near_uniform: tuple[str, ...] = ()
    near_uniform_count: int = 0
    groups: Groups | None = None
    weights: Weights | None = None
    origin: Origin | None = None
    layout: str = ""
    warnings: tuple[str, ...]


class _Place(NamedTuple):
    part: str
    number: int


def origin_of(run: str, classes: Sequence[str], fingerprints: Mapping[str, Mapping[str, str]] | None, dataset: Dataset) -> Origin:
    """Describe the run that a run on a data set starts from.

    Args:
        run: name of the earlier run.
        classes: classes of the earlier run.
        fingerprints: its images, see `tlcli.training.runs.split_file.read_fingerprints`; None if it does not record them.
        dataset: data set of the run that starts.
    """
    seen = None if fingerprints is None else set(fingerprints.get("train", {}).values())
    return Origin(
        run=run,
        kept=tuple(name for name in dataset.classes if name in classes),
        new=tuple(name for name in dataset.classes if name not in classes),
        dropped=tuple(name for name in classes if name not in dataset.classes),
        known=None if seen is None else {name: sum(image in seen for image in part.fingerprints) for name, part in dataset.parts.items()},
    )


def describe_dataset(dataset: Dataset, origin: Origin | None = None) -> DataSheet:
    """Create the data sheet of a data set without decoding images. Sizes are read from the headers of at most 5,000 images.

    Args:
        dataset: data set of the run.
        origin: earlier run that the run starts from.
    """
    weights = dataset.train.weights
    counts = {name: _count_by_class(part, dataset.classes) for name, part in dataset.parts.items()}
    of_train = list(counts["train"].values())
    images = {name: len(part) for name, part in dataset.parts.items()}
    groups = _duplicates(dataset.parts)
    copies = [tuple(_copy(dataset, place) for place in group) for group in groups]
    contradictions = sum(len({copy.label for copy in group}) > 1 for group in copies)
    overlaps = _overlaps(groups, list(dataset.parts))
    copies.sort(key=lambda group: (-len({copy.label for copy in group}), -len({copy.part for copy in group})))
    return DataSheet(
        dataset=dataset.spec,
        fingerprint=dataset.fingerprint,
        images=counts,
        sizes=_sizes(dataset),
        imbalance=max(of_train) / max(1, min(of_train)),
        duplicates=tuple(copies[:_MOST_LISTED]),
        duplicate_contents=len(copies),
        contradictions=contradictions,
        overlaps=overlaps,
        left_out=tuple(Unread(name=printable(left.name), reason=left.reason) for left in dataset.left_out),
        skipped=tuple(
            NotRead(name=printable(path.name), reason=path.reason, is_folder=path.is_folder)
            for path in sorted(dataset.skipped, key=lambda path: not path.is_folder)[:_MOST_SKIPPED]
        ),
        skipped_count=len(dataset.skipped),
        near_uniform=tuple(map(printable, dataset.near_uniform[:_MOST_LISTED])),
        near_uniform_count=len(dataset.near_uniform),
        groups=Groups(column=dataset.group_column, parts=dict(dataset.groups)) if dataset.groups else None,
        weights=None if weights is None else Weights(smallest=float(weights.min()), largest=float(weights.max())),
        origin=origin,
        layout=dataset.layout,
        warnings=(
            *dataset.notes,
            *_warn_of_uniform(dataset.near_uniform),
            *_warn_of_overlaps(overlaps, images),
            *_warn_of_known_images(origin, images),
            *_warn_of_contradictions(contradictions, copies),
            *_warn_of_small_classes(counts),
            *_warn_of_imbalance(counts["train"], "mean AP" if dataset.task == "multi-label" else "macro recall"),
        ),
    )


def with_near_duplicates(sheet: DataSheet, dataset: Dataset, pairs: Sequence[PartPair]) -> DataSheet:
    """Return a data sheet with the near-duplicates across parts, and a warning for each part that has some.

    Args:
        sheet: data sheet of the data set.
        dataset: data set.
        pairs: near-duplicates; see `tlcli.training.features.part_overlap.near_duplicates_across_parts`.
    """
    copies = tuple(
        NearCopy(image=_copy(dataset, _Place(*pair.image)), other=_copy(dataset, _Place(*pair.other)), similarity=round(pair.similarity, 4))
        for pair in pairs
    )
    return sheet.model_copy(
        update={
            "near_duplicates": copies[:_MOST_LISTED],
            "near_duplicate_count": len(copies),
            "warnings": (*sheet.warnings, *_warn_of_near_duplicates(copies)),
        }
    )


def write_data_sheet(path: Path, sheet: DataSheet) -> None:
    """Write a data sheet to a JSON file atomically.

    Raises:
        OSError: the file cannot be written.
    """
    with whole_file(path) as temporary:
        temporary.write_text(sheet.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_data_sheet(run: Path) -> DataSheet | None:
    """Read the data sheet from a run folder. Return None if it is missing or cannot be read by this version."""
    try:
        return DataSheet.model_validate_json((run / DATA_SHEET).read_bytes())
    except (OSError, ValidationError):
        return None


def _count_by_class(part: Part, classes: Sequence[str]) -> dict[str, int]:
    return dict(zip(classes, part.class_counts(len(classes)), strict=True))


def _sizes(dataset: Dataset) -> Sizes | None:
    images = [(part.source, name) for part in dataset.parts.values() for name in part.names]
    sample = images[:: -(-len(images) // _MOST_MEASURED) or 1]
    with ThreadPoolExecutor(max_workers=2 * usable_cores()) as pool:  # the folder may be on a network file system
        sizes = [size for size in pool.map(lambda image: image_size(*image), sample) if size is not None]
    if not sizes:
        return None
    width, height = ([size[side] for size in sizes] for side in (0, 1))
    return Sizes(measured=len(sizes), width=_spread(width), height=_spread(height))


def _spread(values: Sequence[int]) -> Spread:
    return Spread(smallest=min(values), median=median(values), largest=max(values))


def _duplicates(parts: Mapping[str, Part]) -> list[list[_Place]]:
    """Return the locations of each image content that occurs more than once, in the order of the parts."""
    places: dict[str, list[_Place]] = defaultdict(list)
    for name, part in parts.items():
        for index, fingerprint in enumerate(part.fingerprints):
            places[fingerprint].append(_Place(name, index))
    return [group for group in places.values() if len(group) > 1]


def _copy(dataset: Dataset, place: _Place) -> Copy:
    part = dataset.parts[place.part]
    label = ", ".join(part.labels_of(place.number, dataset.classes)) or "none"
    return Copy(part=place.part, name=printable(part.names[place.number]), label=label)


def _overlaps(groups: Sequence[Sequence[_Place]], parts: Sequence[str]) -> tuple[Overlap, ...]:
    """Count the images that each part shares with each earlier part."""
    overlaps = []
    for earlier, later in combinations(parts, 2):
        images = sum(place.part == later for group in groups if any(other.part == earlier for other in group) for place in group)
        if images:
            overlaps.append(Overlap(of=later, also_in=earlier, images=images))
    return tuple(overlaps)


def _warn_of_overlaps(overlaps: Sequence[Overlap], images: Mapping[str, int]) -> list[str]:
    return [
        f"{overlap.images:,} of the {images[overlap.of]:,} images of the {_PART_NAMES[overlap.of]} part"
        f" {'is' if overlap.images == 1 else 'are'} in the {_PART_NAMES[overlap.also_in]} part too"
        + (
            f": the metrics of the {_PART_NAMES[overlap.of]} part are too optimistic"
            if overlap.also_in == "train"
            else ", which selected the epoch"
        )
        for overlap in overlaps
    ]


def _warn_of_near_duplicates(copies: Sequence[NearCopy]) -> list[str]:
    warnings = []
    for part, earlier in dict.fromkeys((copy.image.part, copy.other.part) for copy in copies):
        pairs = [copy for copy in copies if (copy.image.part, copy.other.part) == (part, earlier)]
        images = len({copy.image.name for copy in pairs})
        effect = f": the metrics of the {_PART_NAMES[part]} part are too optimistic" if earlier == "train" else ", which selected the epoch"
        warnings.append(
            f"{images:,} {'image of the ' if images == 1 else 'images of the '}{_PART_NAMES[part]} part"
            f" {'is' if images == 1 else 'are'} nearly the same as images of the {_PART_NAMES[earlier]} part, such as"
            f" {pairs[0].image.name} and {pairs[0].other.name}{effect}"
        )
    return warnings


def _warn_of_known_images(origin: Origin | None, images: Mapping[str, int]) -> list[str]:
    """Warn of images outside of the training part that the run started from was trained on."""
    if origin is None:
        return []
    if origin.known is None:
        return [f"{origin.run} does not record the contents of its images: some of the validation images may be among its training images"]
    return [
        f"{known:,} of the {images[part]:,} images of the {_PART_NAMES[part]} part {'was' if known == 1 else 'were'} in the"
        f" training part of {origin.run}, which this run started from: the metrics of the {_PART_NAMES[part]} part are too optimistic"
        for part, known in origin.known.items()
        if part != "train" and known
    ]


def _warn_of_contradictions(count: int, copies: Sequence[Sequence[Copy]]) -> list[str]:
    if not count:
        return []
    first, second = _differing(copies[0])
    images = "1 image has two labels" if count == 1 else f"{count:,} images have two labels or more"
    return [f"{images}, such as {first.name} ({first.label}) and {second.name} ({second.label}): one of them must be wrong"]


def _differing(group: Sequence[Copy]) -> tuple[Copy, Copy]:
    return group[0], next(copy for copy in group if copy.label != group[0].label)


def _warn_of_uniform(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    images = "1 image is" if len(names) == 1 else f"{len(names):,} images are"
    return [f"{images} of one colour everywhere, or nearly, such as {printable(names[0])}: look at them, they teach nothing"]


def _warn_of_small_classes(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    warnings = []
    for part, by_class in counts.items():
        limit = FEW_TO_TRAIN if part == "train" else FEW_TO_JUDGE
        few = {name: count for name, count in by_class.items() if count < limit}
        if few:
            effect = "too few to learn from" if part == "train" else "too few to judge by"
            classes = one_line(f"{name} ({count})" for name, count in few.items())
            warnings.append(f"fewer than {limit} {_PART_NAMES[part]} images of {classes}: {effect}")
    return warnings


def _warn_of_imbalance(of_train: Mapping[str, int], metric: str) -> list[str]:
    ordered = sorted(of_train, key=lambda name: of_train[name])
    smallest, largest = ordered[0], ordered[-1]
    if of_train[largest] < IMBALANCED * of_train[smallest]:
        return []
    return [
        f"the training part has {of_train[largest]:,} images of {largest} and {of_train[smallest]:,} of {smallest}:"
        f" judge by the {metric}, which weighs every class equally"
    ]
