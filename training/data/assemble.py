"""From a listing to a data set: choose, check every image that is used, split, and say what is wrong before any training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from tlcli.contract.errors import DatasetError
from tlcli.training.data.dataset import Checked, Dataset, LeftOut, Part
from tlcli.training.data.listing import Images, Listing, choose_classes, one_line
from tlcli.training.data.split import Draw, held_out, read_all, shuffled
from tlcli.training.runtime.progress import ProgressFactory
from tlcli.training.settings.config import FinetuneConfig


def assemble(listing: Listing, config: FinetuneConfig, progress: ProgressFactory) -> Dataset:
    """Choose images, read each once, and put them into parts.

    Only what is used is read: with `config.limit`, that many readable images a class in each part.

    Raises:
        DatasetError: see `choose_classes`; or too few images of a class can be read.
    """
    classes = choose_classes(listing, config.classes, config.num_classes)
    checked: dict[str, Checked] = {}

    def reader(names: list[str]) -> set[str]:
        with progress("Checking images", len(names)) as advance:
            found = listing.source.check(names, advance)
        checked.update(found)
        return {name for name, result in found.items() if result.reason is None}

    draws = {
        part: {name: _draw(images[name], part, name, part == "train" and listing.val is None, config) for name in classes}
        for part, images in listing.parts.items()
    }
    read_all([draw for of_part in draws.values() for draw in of_part.values()], reader)
    left_out = tuple(LeftOut(name, result.reason) for name, result in checked.items() if result.reason is not None)
    _check_readable(listing, draws, left_out)

    chosen: dict[str, Images] = {part: {name: draw.readable for name, draw in of_part.items()} for part, of_part in draws.items()}
    if listing.val is None:
        chosen["train"], chosen["val"] = _split(draws["train"], config)
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
    )


def _draw(names: Sequence[str], part: str, class_name: str, is_split: bool, config: FinetuneConfig) -> Draw:
    wanted = config.limit
    if wanted is not None and is_split:
        wanted += held_out(len(names), config.val_fraction, config.limit)
    return Draw(shuffled(names, config.seed, f"{part}/{class_name}"), wanted)


def _check_readable(listing: Listing, draws: dict[str, dict[str, Draw]], left_out: tuple[LeftOut, ...]) -> None:
    every = [draw for of_part in draws.values() for draw in of_part.values()]
    if not any(draw.readable for draw in every):
        tried, first = sum(draw.tried for draw in every), left_out[0]
        raise DatasetError(f"{listing.where}: none of its {tried:,} images can be read; {first.name}: {first.reason}")
    for part, of_part in draws.items():
        unreadable = [name for name, draw in of_part.items() if not draw.readable]
        if unreadable:
            raise DatasetError(
                f"{listing.where}: no image of the class {one_line(unreadable)} in its {part} part can be read: replace them"
            )
    if listing.val is None:
        single = [name for name, draw in draws["train"].items() if len(draw.readable) < 2]
        if single:
            raise DatasetError(
                f"{listing.where}: of the class {one_line(single)} only one image can be read, at least two are needed, one to train and"
                " one to validate on: add images, or a val folder"
            )


def _split(draws: dict[str, Draw], config: FinetuneConfig) -> tuple[Images, Images]:
    """Training and validation images, stratified: the draws are shuffled already, so the first of each validate."""
    train: dict[str, list[str]] = {}
    val: dict[str, list[str]] = {}
    for name, draw in draws.items():
        usable = len(draw.names) - draw.unreadable
        count = min(held_out(usable, config.val_fraction, config.limit), len(draw.readable) - 1)
        val[name] = draw.readable[:count]
        train[name] = draw.readable[count:][: config.limit]
    return train, val


def _part(listing: Listing, part: str, chosen: Images, classes: Sequence[str], checked: dict[str, Checked]) -> Part:
    """Class by class, and within a class in the listing's order, so that the order says nothing about the draw."""
    listed = listing.parts["train" if part == "val" and listing.val is None else part]
    names: list[str] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        wanted = set(chosen[class_name])
        names += [name for name in listed[class_name] if name in wanted]
        labels += [label] * len(wanted)
    return Part(
        labels=np.array(labels, dtype=np.int64),
        names=tuple(names),
        fingerprints=tuple(checked[name].fingerprint for name in names),
        source=listing.source,
    )


def _fingerprint(classes: Sequence[str], parts: dict[str, Part]) -> str:
    """Of contents and labels, not of names: images that were only renamed or moved are the same data set."""
    content = {name: sorted(zip(part.labels.tolist(), part.fingerprints, strict=True)) for name, part in parts.items()}
    return hashlib.sha256(json.dumps([list(classes), content], sort_keys=True).encode()).hexdigest()
