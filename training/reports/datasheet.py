"""What there is to know of the images that a run was trained on, and what a reader of its figures must be warned of."""

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
from tlcli.training.settings.run_file_names import DATA_SHEET

FEW_TO_TRAIN, FEW_TO_JUDGE = 10, 5
"""Fewer images of a class in the training part, or in another, are worth a warning."""

LOPSIDED = 10
"""So many times the images of the smallest class in the largest are worth one too."""

_MOST_MEASURED = 5000
_MOST_LISTED = 100
_MOST_SKIPPED = 1000

_CALLED = {"train": "training", "val": "validation", "test": "test"}


class Spread(BaseModel):
    """Of images' widths or heights, in pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    smallest: int
    median: float
    largest: int


class Sizes(BaseModel):
    """How large images are, upright. measured: how many were looked at, evenly spread over all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    measured: int
    width: Spread
    height: Spread


class Copy(BaseModel):
    """One of several images of the same content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    name: str
    label: str


class Overlap(BaseModel):
    """images: how many of the part `of` are in the part `also_in` too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: str
    also_in: str
    images: int = Field(validation_alias=IMAGES_FIELD)


class Unread(BaseModel):
    """An image that could not be read, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    reason: str


class NotRead(BaseModel):
    """A file that is no image, or a folder that is no class, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    reason: str
    is_folder: bool


class DataSheet(BaseModel):
    """`data_sheet.json`.

    images: how many by part and class, in the order of the labels.
    sizes: None if no image could be measured.
    imbalance: the largest class's training images over the smallest's.
    duplicates: images whose content occurs more than once, byte by byte: a tuple for each content, at most a hundred of them, those with
        different labels first, then those in several parts. duplicate_contents: how many there are in all.
    contradictions: how many of them have different labels. overlaps: those of parts.
    skipped: files that are no images and folders that are no classes, the folders first, at most a thousand of `skipped_count`.
    near_uniform: images of one colour everywhere, at most a hundred of `near_uniform_count`.
    layout: which folder is which part. warnings: a line each.
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
    left_out: tuple[Unread, ...]
    skipped: tuple[NotRead, ...] = ()
    skipped_count: int = 0
    near_uniform: tuple[str, ...] = ()
    near_uniform_count: int = 0
    layout: str = ""
    warnings: tuple[str, ...]


class _Place(NamedTuple):
    part: str
    number: int


def data_sheet(dataset: Dataset) -> DataSheet:
    """Describe a data set. Images are not decoded: sizes are read from the headers of at most 5,000."""
    counts = {name: _by_class(part, dataset.classes) for name, part in dataset.parts.items()}
    of_train = list(counts["train"].values())
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
            NotRead(name=printable(one.name), reason=one.reason, is_folder=one.is_folder)
            for one in sorted(dataset.skipped, key=lambda one: not one.is_folder)[:_MOST_SKIPPED]
        ),
        skipped_count=len(dataset.skipped),
        near_uniform=tuple(map(printable, dataset.near_uniform[:_MOST_LISTED])),
        near_uniform_count=len(dataset.near_uniform),
        layout=dataset.layout,
        warnings=(
            *dataset.notes,
            *_of_uniform(dataset.near_uniform),
            *_of_overlaps(overlaps, counts),
            *_of_contradictions(contradictions, copies),
            *_of_few(counts),
            *_of_imbalance(counts["train"]),
        ),
    )


def write_data_sheet(path: Path, sheet: DataSheet) -> None:
    """As JSON, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(path) as temporary:
        temporary.write_text(sheet.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_data_sheet(run: Path) -> DataSheet | None:
    """The data sheet in a run's folder; None where there is none that this version can read."""
    try:
        return DataSheet.model_validate_json((run / DATA_SHEET).read_bytes())
    except (OSError, ValidationError):
        return None


def _by_class(part: Part, classes: Sequence[str]) -> dict[str, int]:
    labels = part.labels.tolist()
    counts = [0] * len(classes)
    for label in labels:
        counts[label] += 1
    return dict(zip(classes, counts, strict=True))


def _sizes(dataset: Dataset) -> Sizes | None:
    every = [(part.source, name) for part in dataset.parts.values() for name in part.names]
    chosen = every[:: -(-len(every) // _MOST_MEASURED) or 1]
    with ThreadPoolExecutor(max_workers=2 * usable_cores()) as pool:  # a folder may lie on a network
        found = [size for size in pool.map(lambda one: image_size(*one), chosen) if size is not None]
    if not found:
        return None
    width, height = ([size[side] for size in found] for side in (0, 1))
    return Sizes(measured=len(found), width=_spread(width), height=_spread(height))


def _spread(values: Sequence[int]) -> Spread:
    return Spread(smallest=min(values), median=median(values), largest=max(values))


def _duplicates(parts: Mapping[str, Part]) -> list[list[_Place]]:
    """The places of each content that occurs more than once, in the order of the parts."""
    places: dict[str, list[_Place]] = defaultdict(list)
    for name, part in parts.items():
        for index, fingerprint in enumerate(part.fingerprints):
            places[fingerprint].append(_Place(name, index))
    return [group for group in places.values() if len(group) > 1]


def _copy(dataset: Dataset, place: _Place) -> Copy:
    part = dataset.parts[place.part]
    return Copy(part=place.part, name=printable(part.names[place.number]), label=dataset.classes[int(part.labels[place.number])])


def _overlaps(groups: Sequence[Sequence[_Place]], parts: Sequence[str]) -> tuple[Overlap, ...]:
    """Of each part, the images that an earlier part has too."""
    found = []
    for earlier, later in combinations(parts, 2):
        images = sum(place.part == later for group in groups if any(one.part == earlier for one in group) for place in group)
        if images:
            found.append(Overlap(of=later, also_in=earlier, images=images))
    return tuple(found)


def _of_overlaps(overlaps: Sequence[Overlap], counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    return [
        f"{one.images:,} of the {sum(counts[one.of].values()):,} images of the {_CALLED[one.of]} part"
        f" {'is' if one.images == 1 else 'are'} in the {_CALLED[one.also_in]} part too"
        + (
            f": figures of the {_CALLED[one.of]} part are better than they should be"
            if one.also_in == "train"
            else ", which chose the epoch"
        )
        for one in overlaps
    ]


def _of_contradictions(count: int, copies: Sequence[Sequence[Copy]]) -> list[str]:
    if not count:
        return []
    first, second = _differing(copies[0])
    many = "1 image has two labels" if count == 1 else f"{count:,} images have two labels or more"
    return [f"{many}, such as {first.name} ({first.label}) and {second.name} ({second.label}): one of them must be wrong"]


def _differing(group: Sequence[Copy]) -> tuple[Copy, Copy]:
    return group[0], next(copy for copy in group if copy.label != group[0].label)


def _of_uniform(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    many = "1 image is" if len(names) == 1 else f"{len(names):,} images are"
    return [f"{many} of one colour everywhere, or nearly, such as {printable(names[0])}: look at them, they teach nothing"]


def _of_few(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    found = []
    for part, by_class in counts.items():
        limit = FEW_TO_TRAIN if part == "train" else FEW_TO_JUDGE
        few = {name: count for name, count in by_class.items() if count < limit}
        if few:
            says = "too few to learn from" if part == "train" else "too few to judge by"
            named = one_line(f"{name} ({count})" for name, count in few.items())
            found.append(f"fewer than {limit} {_CALLED[part]} images of {named}: {says}")
    return found


def _of_imbalance(of_train: Mapping[str, int]) -> list[str]:
    ordered = sorted(of_train, key=lambda name: of_train[name])
    smallest, largest = ordered[0], ordered[-1]
    if of_train[largest] < LOPSIDED * of_train[smallest]:
        return []
    return [
        f"the training part has {of_train[largest]:,} images of {largest} and {of_train[smallest]:,} of {smallest}:"
        " judge by the macro F1, which counts every class alike"
    ]
