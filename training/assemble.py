"""From a listing to a data set: choose, check every picture that is used, split, and say what is wrong before any training."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from contract.errors import DatasetError
from training.config import FinetuneConfig
from training.listing import Listing, Pictures, choose_classes, one_line
from training.parts import Checked, Dataset, LeftOut, Part
from training.progress import ProgressFactory
from training.split import Draw, held_out, read_all, shuffled

_MINIMUM_TO_SPLIT = 2


def assemble(listing: Listing, config: FinetuneConfig, progress: ProgressFactory) -> Dataset:
    """Choose pictures, read each once, and put them into parts.

    Only what is used is read: with `config.limit`, that many readable pictures a class in each part.

    Raises:
        DatasetError: see `choose_classes`; or too few pictures of a class can be read.
    """
    classes = choose_classes(listing, config.classes, config.num_classes)
    checked: dict[str, Checked] = {}

    def reader(names: list[str]) -> set[str]:
        with progress("Checking pictures", len(names)) as advance:
            found = listing.source.check(names, advance)
        checked.update(found)
        return {name for name, result in found.items() if result.reason is None}

    draws = {
        part: {name: _draw(pictures[name], part, name, listing.val is None and part == "train", config) for name in classes}
        for part, pictures in listing.parts.items()
    }
    read_all([draw for by_class in draws.values() for draw in by_class.values()], reader)
    left_out = tuple(LeftOut(name, result.reason) for name, result in checked.items() if result.reason is not None)
    if len(left_out) == len(checked):
        raise DatasetError(f"{listing.where}: none of its {len(checked):,} pictures can be read; the first, {left_out[0].name}: {left_out[0].reason}")
    chosen = {part: {name: draw.readable for name, draw in by_class.items()} for part, by_class in draws.items()}
    _check_readable(listing, chosen, left_out)
    if listing.val is None:
        chosen = _split(listing, draws["train"], config) | {part: names for part, names in chosen.items() if part != "train"}

    parts = {part: _part(listing, part, chosen[part], classes, checked) for part in ("train", "val", "test") if part in chosen}
    return Dataset(
        spec=config.dataset,
        classes=classes,
        train=parts["train"],
        val=parts["val"],
        test=parts.get("test"),
        left_out=left_out,
        fingerprint=_fingerprint(classes, parts),
    )


def _draw(names: list[str] | tuple[str, ...] | object, part: str, class_name: str, to_split: bool, config: FinetuneConfig) -> Draw:
    raise NotImplementedError
