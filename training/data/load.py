"""Data set loading, from the value of `--dataset` to labelled images in parts.

spec --- a known name, a folder, a label file, a timm spec ---> Listing       registry, image_folder, label_file, timm_datasets
Listing --- choose classes, sample, check each image, split ---> Dataset      assemble
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tlcli.contract.errors import DatasetError, SettingsError
from tlcli.contract.files.atomic_file import whole_file
from tlcli.contract.files.display_name import printable
from tlcli.training.data.assemble import assemble
from tlcli.training.data.dataset import Dataset, LeftOut, Part
from tlcli.training.data.image_folder import list_folder
from tlcli.training.data.label_file import list_label_file, require_label_file_settings
from tlcli.training.data.label_files.label_row import NAMED_SUFFIXES
from tlcli.training.data.label_files.read_label_file import is_label_file
from tlcli.training.data.listing import Listing
from tlcli.training.data.registry import KNOWN, KnownDataset, known_datasets
from tlcli.training.data.timm_datasets import PREFIXES, is_timm_spec, list_timm
from tlcli.training.runtime.progress import ProgressFactory, silent
from tlcli.training.settings.config import FinetuneConfig

__all__ = ["Dataset", "KnownDataset", "LeftOut", "Part", "known_datasets", "list_dataset", "load_dataset", "save_split"]

WITHOUT_LABELS = ""
"""Key of the images without any label in the saved split of a data set with several labels per image."""


def load_dataset(config: FinetuneConfig, progress: ProgressFactory | None = None, *, is_new: bool = False) -> Dataset:
    """Find, check and split the data set selected by `config`. A missing data set is downloaded first.

    Args:
        config: settings, of which `dataset`, `data_dir`, `classes`, `num_classes`, `limit`, `val_fraction` and `seed` are used.
        progress: progress bar for downloads and checks; silent by default.
        is_new: True to reject settings that have no effect. Set it to False for existing runs, since earlier versions accepted them.

    Raises:
        DatasetError: the data set does not exist or is not suitable for training.
        HubError: the data set is missing and cannot be downloaded.
        SettingsError: `val_fraction` is set for a new run, but the data set already has a validation part.
    """
    progress = progress or silent
    listing = list_dataset(config, progress)
    if is_new and listing.val is not None and config.val_fraction != FinetuneConfig.model_fields["val_fraction"].default:
        raise SettingsError(
            f"--val-fraction {config.val_fraction:g}: {listing.where} has a val part, so no images are held out: leave --val-fraction out"
        )
    return assemble(listing, config, progress)


def save_split(dataset: Dataset, path: str | Path) -> None:
    """Write the images of each part, the SHA-256 of each, and the images left out with their reasons, to a JSON file. The write is atomic.

    Raises:
        OSError: the file cannot be written.
    """
    document = {
        "format_version": 1,
        "dataset": dataset.spec,
        "fingerprint": dataset.fingerprint,
        "classes": list(dataset.classes),
        "parts": {part: _by_class(images.names, images, dataset.classes) for part, images in dataset.parts.items()},
        "fingerprints": {part: _by_class(images.fingerprints, images, dataset.classes) for part, images in dataset.parts.items()},
        "left_out": [{"name": left.name, "reason": left.reason} for left in dataset.left_out],
    }
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1))


def _by_class(values: Sequence[str], part: Part, classes: Sequence[str]) -> dict[str, list[str]]:
    """Group a value of each image of a part by class, in the order of the part. With several labels, an image is in several classes."""
    grouped: list[list[str]] = [[] for _ in classes]
    if part.task == "multi-label":
        for label, values_of_class in enumerate(grouped):
            values_of_class += [values[index] for index in np.flatnonzero(part.labels[:, label]).tolist()]
        without = [values[index] for index in np.flatnonzero(part.labels.sum(1) == 0).tolist()]
        return dict(zip(classes, grouped, strict=True)) | ({WITHOUT_LABELS: without} if without else {})
    for value, label in zip(values, part.labels.tolist(), strict=True):
        grouped[label].append(value)
    return dict(zip(classes, grouped, strict=True))


def list_dataset(config: FinetuneConfig, progress: ProgressFactory) -> Listing:
    """List the images of a data set by part and class. A missing data set is downloaded first.

    Args:
        config: settings, of which `dataset`, `data_dir`, `seed`, `columns`, `group_column` and `task` are used.
        progress: progress bar for downloads.

    Raises:
        DatasetError: the data set does not exist or cannot be listed.
        HubError: the data set is missing and cannot be downloaded.
    """
    spec = config.dataset
    if spec.lower() not in KNOWN and is_label_file(spec):
        return list_label_file(spec, config.columns, config.group_column, progress, config.task)
    if config.task == "multi-label":
        raise DatasetError(
            f"--task multi-label needs a label file, in which an image can have several labels ({NAMED_SUFFIXES}): {printable(spec)} is not"
            " one"
        )
    require_label_file_settings(spec, config.columns, config.group_column)
    known = KNOWN.get(spec.lower())
    if known is not None:
        return known.load(config.data_dir, config.seed, progress)
    folder = Path(spec).expanduser()
    if folder.is_dir():
        return list_folder(folder)
    if folder.is_file():
        raise DatasetError(
            f"{spec} is a file: expected a folder of images, or a label file ({NAMED_SUFFIXES}); unpack it first if it is an archive"
        )
    if is_timm_spec(spec):
        return list_timm(config, progress)
    prefixes = ", ".join(f"{prefix}/..." for prefix in PREFIXES)
    raise DatasetError(
        f"unknown data set {spec!r}: expected one of {', '.join(KNOWN)}, an existing folder of images,"
        f" a label file ({NAMED_SUFFIXES}), or a timm spec ({prefixes})"
    )
