"""Conversion of a listing to a data set: sample, check and split the images, so that problems are reported before training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import DatasetError
from tlcli.contract.files.display_name import printable
from tlcli.training.data.dataset import CheckResult, Dataset, LeftOut, Part
from tlcli.training.data.label_files.group_split import UnsplittableError, split_groups
from tlcli.training.data.listing import Images, Listing, choose_classes, one_line
from tlcli.training.data.split import ClassSample, read_all, shuffled, validation_count
from tlcli.training.runtime.progress import ProgressFactory
from tlcli.training.settings.config import FinetuneConfig

_ALL = ""
"""Key of all images of a part, where they are sampled together."""


def assemble(listing: Listing, config: FinetuneConfig, progress: ProgressFactory) -> Dataset:
    """Sample the images of a listing, read each sampled image once, and assign the readable ones to parts.

    With `config.limit`, reading stops once each part has that many readable images per class. Images that are not used are not read.

    Raises:
        DatasetError: too few images of a class can be read, or `choose_classes` rejects the listing.
    """
    classes = choose_classes(listing, config.classes, config.num_classes)
    if listing.labels is not None and config.limit is not None:
        raise DatasetError(
            f"--limit {config.limit} counts the images of each class, and in {listing.where} an image can have several: leave --limit out"
        )
    if listing.val is None and (listing.groups is not None or listing.labels is not None):
        listing = _hold_out(listing, classes, config)
    checked: dict[str, CheckResult] = {}

    def reader(names: list[str]) -> set[str]:
        with progress("Checking images", len(names)) as advance:
            results = listing.source.check(names, advance)
        checked.update(results)
        return {name for name, result in results.items() if result.reason is None}

    samples = {
        part: {
            name: _sample(names, part, name, part == "train" and listing.val is None, config)
            for name, names in _strata(listing, part, classes).items()
        }
        for part in listing.parts
    }
    read_all([sample for by_class in samples.values() for sample in by_class.values()], reader)
    left_out = tuple(LeftOut(name, result.reason) for name, result in checked.items() if result.reason is not None)
    _check_readable(listing, samples, left_out)
    if listing.labels is not None:
        _check_labels_readable(listing, samples, classes)

    chosen: dict[str, Images] = {part: {name: sample.readable for name, sample in by_class.items()} for part, by_class in samples.items()}
    if listing.val is None:
        chosen["train"], chosen["val"] = _split(samples["train"], config)
    parts = {part: _part(listing, part, names, classes, checked) for part, names in chosen.items()}
    return Dataset(
        spec=config.dataset,
        classes=classes,
        train=parts["train"],
        val=parts["val"],
        test=parts.get("test"),
        left_out=left_out,
        fingerprint=_fingerprint(classes, parts),
        skipped=listing.skipped,
        notes=listing.notes,
        layout=listing.layout,
        near_uniform=tuple(name for part in parts.values() for name in part.names if checked[name].near_uniform),
        group_column=listing.group_column,
        groups={}
        if listing.groups is None
        else {part: len({listing.groups[name] for name in images.names}) for part, images in parts.items()},
    )


def _strata(listing: Listing, part: str, classes: Sequence[str]) -> Images:
    """Return the images of a part that are sampled together: those of each class, or all of them if images have several labels."""
    if listing.labels is not None:
        return {_ALL: listing.images_of(part)}
    return {name: listing.parts[part][name] for name in classes}


def _hold_out(listing: Listing, classes: Sequence[str], config: FinetuneConfig) -> Listing:
    """Split whole groups off the training part for validation, or images with several labels if there are no groups.

    Raises:
        DatasetError: a class has images of one group only, or the groups cannot be divided.
    """
    if listing.labels is not None:
        names = listing.images_of("train")
        labels = _with_unlabelled(label_matrix(names, listing.labels, classes))
    else:
        names = [name for class_name in classes for name in listing.train[class_name]]
        labels = np.repeat(np.arange(len(classes)), [len(listing.train[class_name]) for class_name in classes])
    groups = listing.groups or {}
    try:
        held_out = split_groups([groups.get(name, name) for name in names], labels, config.val_fraction, config.seed)
    except UnsplittableError as error:
        images = f"images of the class {printable(classes[error.label])}" if error.label < len(classes) else "images without a label"
        kind, column = ("group", f" (column {listing.group_column})") if groups else ("image", "")
        counted = f"one {kind}" if error.groups == 1 else f"{error.groups:,} {kind}s, which cannot be divided"
        raise DatasetError(
            f"{listing.where}: the {images} are of {counted}{column}, but training and validation need at least one each: add images of"
            " other groups, give a split column, or choose other classes with --classes"
        ) from error
    chosen = {name for name, is_val in zip(names, held_out.tolist(), strict=True) if is_val}

    def of_val(images: Sequence[str], is_val: bool) -> list[str]:
        return [name for name in images if (name in chosen) == is_val]

    unlabelled = listing.unlabelled.get("train", ())
    return replace(
        listing,
        train={class_name: of_val(listing.train[class_name], False) for class_name in classes},
        val={class_name: of_val(listing.train[class_name], True) for class_name in classes},
        unlabelled={**listing.unlabelled, "train": of_val(unlabelled, False), "val": of_val(unlabelled, True)},
    )


def label_matrix(names: Sequence[str], labels: Mapping[str, Sequence[str]], classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the labels of n images as 0 and 1 for each of the C classes, int64 `[n, C]`. Labels of other classes are ignored."""
    number = {name: index for index, name in enumerate(classes)}
    matrix = np.zeros((len(names), len(classes)), dtype=np.int64)
    for row, name in enumerate(names):
        for label in labels[name]:
            if label in number:
                matrix[row, number[label]] = 1
    return matrix


def _with_unlabelled(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Add a column for the images without a label if there are several, so that they are divided in proportion, too."""
    without = labels.sum(1) == 0
    return np.column_stack([labels, without]).astype(np.int64) if without.sum() > 1 else labels


def _sample(names: Sequence[str], part: str, class_name: str, is_split: bool, config: FinetuneConfig) -> ClassSample:
    limit = config.limit
    if limit is not None and is_split:
        limit += validation_count(len(names), config.val_fraction, config.limit)
    return ClassSample(shuffled(names, config.seed, f"{part}/{class_name}"), limit)


def _check_readable(listing: Listing, samples: dict[str, dict[str, ClassSample]], left_out: tuple[LeftOut, ...]) -> None:
    every = [sample for by_class in samples.values() for sample in by_class.values()]
    if not any(sample.readable for sample in every):
        tried, first = sum(sample.tried for sample in every), left_out[0]
        raise DatasetError(f"{listing.where}: none of its {tried:,} images can be read; {first.name}: {first.reason}")
    for part, by_class in samples.items():
        unreadable = [name for name, sample in by_class.items() if not sample.readable]
        if unreadable:
            raise DatasetError(
                f"{listing.where}: no image of the class {one_line(unreadable)} in the {part} part can be read: replace the images"
            )
    if listing.val is None:
        single = [name for name, sample in samples["train"].items() if len(sample.readable) < 2]
        if single:
            raise DatasetError(
                f"{listing.where}: only one image of the class {one_line(single)} can be read, but at least two are needed, one for"
                " training and one for validation: add images, or a val folder"
            )


def _check_labels_readable(listing: Listing, samples: dict[str, dict[str, ClassSample]], classes: Sequence[str]) -> None:
    assert listing.labels is not None
    for part, sampled in samples.items():
        names = [name for sample in sampled.values() for name in sample.readable]
        missing = [name for name, count in zip(classes, label_matrix(names, listing.labels, classes).sum(0), strict=True) if not count]
        if missing:
            raise DatasetError(
                f"{listing.where}: no image of the class {one_line(missing)} in the {part} part can be read: replace the images"
            )


def _split(samples: dict[str, ClassSample], config: FinetuneConfig) -> tuple[Images, Images]:
    """Split each class into training and validation images. Samples are already shuffled, so the first images form the validation part."""
    train: dict[str, list[str]] = {}
    val: dict[str, list[str]] = {}
    for name, sample in samples.items():
        usable = len(sample.names) - sample.unreadable
        count = min(validation_count(usable, config.val_fraction, config.limit), len(sample.readable) - 1)
        val[name] = sample.readable[:count]
        train[name] = sample.readable[count:][: config.limit]
    return train, val


def _part(listing: Listing, part: str, chosen: Images, classes: Sequence[str], checked: dict[str, CheckResult]) -> Part:
    """Build a part from the chosen images, ordered by class and then as listed, so that sampling does not affect the order."""
    listed = _strata(listing, "train" if part == "val" and listing.val is None else part, classes)
    names: list[str] = []
    indices: list[int] = []
    for label, stratum in enumerate(listed):
        selected = set(chosen[stratum])
        names += [name for name in listed[stratum] if name in selected]
        indices += [label] * len(selected)
    labels = np.array(indices, dtype=np.int64) if listing.labels is None else label_matrix(names, listing.labels, classes)
    return Part(
        labels=labels,
        names=tuple(names),
        fingerprints=tuple(checked[name].fingerprint for name in names),
        source=listing.source,
        weights=np.array([listing.weights[name] for name in names], dtype=np.float32) if listing.weights and part == "train" else None,
    )


def _fingerprint(classes: Sequence[str], parts: dict[str, Part]) -> str:
    """Hash the contents, labels and weights of all images. File names are excluded, so renaming or moving images keeps the fingerprint."""
    content = {
        name: sorted(zip(part.labels.tolist(), part.fingerprints, *([] if part.weights is None else [part.weights.tolist()]), strict=True))
        for name, part in parts.items()
    }
    return hashlib.sha256(json.dumps([list(classes), content], sort_keys=True).encode()).hexdigest()
