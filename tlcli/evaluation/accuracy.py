"""An exported model on labelled images: every image of a part, and what the model says of it."""

from __future__ import annotations

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
from tlcli.training.data.dataloader import image_batches
from tlcli.training.data.dataset import LeftOut, Part
from tlcli.training.data.listing import Listing
from tlcli.training.data.load import list_dataset
from tlcli.training.reports.figures import Explain, Map
from tlcli.training.runtime.progress import ProgressFactory, silent
from tlcli.training.settings.config import FinetuneConfig, default_data_dir

PartName = Literal["train", "val", "test", "all"]


@dataclass(frozen=True)
class Labelled:
    """Images that a model is to be judged on.

    where: the data set, as messages call it. part: which images of it.
    images: those that can be read; their labels are the model's classes.
    left_out: the broken ones.
    skipped: files that are no images and folders that are no classes.
    """

    where: str
    part: PartName
    images: Part
    left_out: tuple[LeftOut, ...]
    skipped: tuple[Skipped, ...] = ()


def find_labelled(
    spec: str, description: Description, part: PartName | None = None, data_dir: Path | None = None, progress: ProgressFactory = silent
) -> Labelled:
    """Find and check the images of a data set whose classes a model knows.

    Args:
        spec: a known name, a folder, or a timm spec, as `tlcli.training.load_dataset` takes them.
        description: the model's.
        part: None for the test part, or all where there is none.
        data_dir: where known data sets are kept.
        progress: told of downloads and of the check.

    Raises:
        DatasetError: no such data set or part, a class that the model does not have, or no image that can be read.
        HubError: it is not here and cannot be downloaded.
    """
    listing = without_masks(list_dataset(FinetuneConfig(dataset=spec, data_dir=data_dir or default_data_dir()), progress))
    chosen: PartName = part or ("all" if listing.test is None else "test")
    by_class = _images_of(listing, chosen)
    ids = label_ids([name for name, names in by_class.items() if names], description.labels, listing.where)
    names = [(name, ids[class_name]) for class_name, of_class in by_class.items() for name in of_class]
    if not names:
        raise DatasetError(f"{listing.where}: no images in its {chosen} part: add some, a folder a class")
    with progress("Checking images", len(names)) as advance:
        checked = listing.source.check([name for name, _ in names], advance)
    readable = [(name, label) for name, label in names if checked[name].reason is None]
    left_out = tuple(LeftOut(name, reason) for name, _ in names if (reason := checked[name].reason) is not None)
    if not readable:
        raise DatasetError(f"{listing.where}: none of its {len(names):,} images can be read; {left_out[0].name}: {left_out[0].reason}")
    images = Part(
        labels=np.array([label for _, label in readable], dtype=np.int64),
        names=tuple(name for name, _ in readable),
        fingerprints=tuple(checked[name].fingerprint for name, _ in readable),
        source=listing.source,
    )
    return Labelled(listing.where, chosen, images, left_out, listing.skipped)


def classify(model: Model, batch: Part, batch_size: int, progress: ProgressFactory = silent) -> Tensor:
    """Logits `[n, C]`, float32, of what the model's file answers on ONNX Runtime.

    Raises:
        ImageError: an image that cannot be read any more.
    """
    logits = []
    with progress("Classifying", len(batch)) as advance:
        for images, _ in image_batches(batch, model.description.preprocessing, batch_size=batch_size, workers=usable_cores()):
            logits.append(torch.from_numpy(model.run(images.numpy()).logits))
            advance(len(images))
    return torch.cat(logits)


def explained_by(model: Model, method: str) -> Explain:
    """One of a model's own maps."""

    def of_image(image: Image.Image, class_index: int) -> Map:
        preprocessing = model.description.preprocessing
        answer = explain(model, preprocessing.apply(image)[None], (class_index,), (method,))
        return answer.maps[method][0, 0], preprocessing

    return of_image


def _images_of(listing: Listing, part: PartName) -> dict[str, list[str]]:
    if part != "all" and part not in listing.parts:
        raise DatasetError(f"{listing.where}: it has no {part} part; it has: {', '.join(listing.parts)}: choose one, or all, with --part")
    parts = list(listing.parts.values()) if part == "all" else [listing.parts[part]]
    return {name: [image for one in parts for image in one.get(name, ())] for name in all_classes(listing, parts)}
