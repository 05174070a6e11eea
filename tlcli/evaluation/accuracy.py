"""Accuracy evaluation of an exported model on the labelled images of a split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tlcli.contract.errors import DatasetError
from tlcli.contract.images.find_images import Skipped
from tlcli.contract.model.description import Description
from tlcli.contract.model.explain import explain
from tlcli.contract.model.onnx_model import Model
from tlcli.contract.process.cores import usable_cores
from tlcli.evaluation.cam_dataset import all_classes, label_ids, without_masks
from tlcli.training.data.assemble import label_matrix
from tlcli.training.data.dataloader import image_batches
from tlcli.training.data.dataset import LeftOut, Part
from tlcli.training.data.listing import Listing
from tlcli.training.data.load import list_dataset
from tlcli.training.reports.figures import Explain, Map
from tlcli.training.runtime.progress import ProgressFactory, silent
from tlcli.training.settings.config import FinetuneConfig, default_data_dir

PartName = Literal["train", "val", "test", "all"]


@dataclass(frozen=True)
class LabelledImages:
    """Labelled images to evaluate a model on.

    where: data set name shown in messages.
    part: split that the images belong to.
    images: readable images, labelled with the model's classes.
    left_out: images that could not be read.
    skipped: files that are not images and folders that are not classes.
    notes: remarks on how a label file was read.
    """

    where: str
    part: PartName
    images: Part
    left_out: tuple[LeftOut, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()


def find_labelled(
    spec: str,
    description: Description,
    part: PartName | None = None,
    data_dir: Path | None = None,
    progress: ProgressFactory = silent,
    columns: Mapping[str, str] | None = None,
) -> LabelledImages:
    """Find and check the images of a data set and label them with a model's classes.

    Args:
        spec: name of a known data set, path of a folder or of a label file, or timm spec, as accepted by `tlcli.training.load_dataset`.
        description: description of the model.
        part: split to use; None for the test split, or for all images if there is none.
        data_dir: folder that holds the known data sets.
        progress: progress display for downloads and for the check.
        columns: names of a label file's columns; see `FinetuneConfig`.

    Raises:
        DatasetError: the data set or split does not exist, the model lacks one of the classes, no image can be read, or images have several
            labels and the model does not give several.
        HubError: the data set is not in `data_dir` and cannot be downloaded.
    """
    several = description.task == "multi-label"
    config = FinetuneConfig(
        dataset=spec, data_dir=data_dir or default_data_dir(), columns=dict(columns or {}), task="multi-label" if several else None
    )
    listing = without_masks(list_dataset(config, progress))
    if listing.labels is not None and not several:
        raise DatasetError(f"{listing.where}: images have several labels, and model {description.name!r} gives each one: use another model")
    chosen: PartName = part or ("all" if listing.test is None else "test")
    by_class = _names_by_class(listing, chosen)
    ids = label_ids(
        [name for name, names in by_class.items() if names], description.labels, listing.where, is_label_file=listing.is_label_file
    )
    names = [(name, ids[class_name]) for class_name, class_images in by_class.items() for name in class_images]
    if listing.labels is not None:
        parts = list(listing.parts) if chosen == "all" else [chosen]
        names = [(name, 0) for part_name in parts for name in listing.images_of(part_name)]
    if not names:
        raise DatasetError(f"{listing.where}: its {chosen} part contains no images: add some, in one folder per class")
    with progress("Checking images", len(names)) as advance:
        checked = listing.source.check([name for name, _ in names], advance)
    readable = [(name, label) for name, label in names if checked[name].reason is None]
    left_out = tuple(LeftOut(name, reason) for name, _ in names if (reason := checked[name].reason) is not None)
    if not readable:
        raise DatasetError(f"{listing.where}: none of its {len(names):,} images can be read; {left_out[0].name}: {left_out[0].reason}")
    labels = np.array([label for _, label in readable], dtype=np.int64)
    if listing.labels is not None:
        renamed = {name: [description.labels[ids[label]] for label in listing.labels[name]] for name, _ in readable}
        labels = label_matrix([name for name, _ in readable], renamed, description.labels)
    images = Part(
        labels=labels,
        names=tuple(name for name, _ in readable),
        fingerprints=tuple(checked[name].fingerprint for name, _ in readable),
        source=listing.source,
    )
    return LabelledImages(listing.where, chosen, images, left_out, listing.skipped, listing.notes if listing.is_label_file else ())


def classify(model: Model, batch: Part, batch_size: int, progress: ProgressFactory = silent) -> Tensor:
    """Classify images with ONNX Runtime and return the logits, float32 `[n, C]`.

    Raises:
        ImageError: an image can no longer be read.
    """
    logits = []
    with progress("Classifying", len(batch)) as advance:
        for images, _, _ in image_batches(batch, model.description.preprocessing, batch_size=batch_size, workers=usable_cores()):
            logits.append(torch.from_numpy(model.run(images.numpy()).logits))
            advance(len(images))
    return torch.cat(logits)


def explained_by(model: Model, method: str) -> Explain:
    """Return a function that computes one of the model's maps for an image and a class."""

    def explain_image(image: Image.Image, class_index: int) -> Map:
        preprocessing = model.description.preprocessing
        answer = explain(model, preprocessing.apply(image)[None], (class_index,), (method,))
        return answer.maps[method][0, 0], preprocessing

    return explain_image


def _names_by_class(listing: Listing, part: PartName) -> dict[str, list[str]]:
    if part != "all" and part not in listing.parts:
        raise DatasetError(f"{listing.where}: it has no {part} part; it has: {', '.join(listing.parts)}: choose one, or all, with --part")
    parts = list(listing.parts.values()) if part == "all" else [listing.parts[part]]
    return {name: [image for images in parts for image in images.get(name, ())] for name in all_classes(listing, parts)}
