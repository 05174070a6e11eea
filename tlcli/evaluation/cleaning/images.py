"""Images to clean, of a run or of a data set without a run, with their features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import DatasetError
from tlcli.contract.process.cores import usable_cores
from tlcli.evaluation.cleaning.image_quality import Quality, measure_quality
from tlcli.training.data.dataset import LeftOut, Part
from tlcli.training.data.folder_source import FolderSource
from tlcli.training.data.listing import Listing
from tlcli.training.data.load import list_dataset
from tlcli.training.features.cache import FeatureCache
from tlcli.training.features.perceptual_hash import Thumbnail, thumbnail
from tlcli.training.models.backbone_names import built_for_size, with_timms_name
from tlcli.training.models.network import Network, NetworkConfig
from tlcli.training.models.pretrained_preprocessing import resolve_preprocessing
from tlcli.training.models.weights import fingerprint, load_backbone
from tlcli.training.runs.load_run import Run, require_dataset
from tlcli.training.runs.run_folder import read_config
from tlcli.training.runtime.device import torch_device
from tlcli.training.runtime.progress import ProgressFactory, silent
from tlcli.training.settings.config import FinetuneConfig


@dataclass(frozen=True, eq=False)
class LabelledParts:
    """Labelled images in splits, in the order train, val, test.

    where: name of the data set in messages. classes: class names. parts: images by split.
    root: folder of the image files; None if the images are not files.
    groups, weights: columns of a label file, by image; None if it has none.
    near_uniform: names of images with nearly one colour. left_out: images that could not be read.
    notes: remarks, one line each.
    """

    where: str
    classes: tuple[str, ...]
    parts: dict[str, Part]
    root: Path | None
    groups: Mapping[str, str] | None
    weights: Mapping[str, float] | None
    near_uniform: frozenset[str]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> Part:
        """Images of all splits."""
        parts = list(self.parts.values())
        return Part(
            labels=np.concatenate([part.labels for part in parts]),
            names=tuple(name for part in parts for name in part.names),
            fingerprints=tuple(value for part in parts for value in part.fingerprints),
            source=parts[0].source,
        )

    @property
    def splits(self) -> tuple[str, ...]:
        """Split of each image."""
        return tuple(split for split, part in self.parts.items() for _ in range(len(part)))


def open_dataset(config: FinetuneConfig, progress: ProgressFactory = silent) -> LabelledParts:
    """Find and check the images of a data set. Unlike for training, nothing is held out, and a class may be missing in a split.

    Args:
        config: settings, of which `dataset`, `data_dir` and `columns` are used.
        progress: progress bar for downloads and checks.

    Raises:
        DatasetError: the data set does not exist, or no image can be read.
        HubError: the data set is missing and cannot be downloaded.
    """
    listing = list_dataset(config, progress)
    _require_one_label(listing)
    classes = tuple(dict.fromkeys([*listing.classes, *(name for images in listing.parts.values() for name in images)]))
    rows = {
        split: [(name, number) for number, label in enumerate(classes) for name in images.get(label, ())]
        for split, images in listing.parts.items()
    }
    names = [name for images in rows.values() for name, _ in images]
    with progress("Checking images", len(names)) as advance:
        checked = listing.source.check(names, advance)
    parts = {}
    for split, images in rows.items():
        readable = [(name, label) for name, label in images if checked[name].reason is None]
        if readable:
            parts[split] = Part(
                labels=np.array([label for _, label in readable], dtype=np.int64),
                names=tuple(name for name, _ in readable),
                fingerprints=tuple(checked[name].fingerprint for name, _ in readable),
                source=listing.source,
            )
    if sum(map(len, parts.values())) < 2:
        raise DatasetError(f"{listing.where}: fewer than two of its {len(names):,} images can be read: add images")
    return LabelledParts(
        where=listing.where,
        classes=classes,
        parts=parts,
        root=listing.source.root if isinstance(listing.source, FolderSource) else None,
        groups=listing.groups,
        weights=listing.weights,
        near_uniform=frozenset(name for name in names if checked[name].near_uniform),
        left_out=tuple(LeftOut(name, reason) for name in names if (reason := checked[name].reason) is not None),
        notes=listing.notes,
    )


def open_run(run: Run, progress: ProgressFactory = silent) -> LabelledParts:
    """Return the images of a finished run in the splits of the run.

    Raises:
        DatasetError: images can no longer be read, or the images changed; see `Run.dataset`.
    """
    require_dataset(run.config, run.path)
    dataset, listing = run.dataset(), list_dataset(run.config, progress)
    _require_one_label(listing)
    notes: tuple[str, ...] = ()
    if read_config(run.path).plan.full_epochs:
        notes = (
            f"{run.path} trained all layers on these labels, so its features may have memorised wrong labels of the train split:"
            f" compare with `tlcli clean {run.config.dataset}`, whose features have not seen them",
        )
    return LabelledParts(
        where=listing.where,
        classes=dataset.classes,
        parts=dataset.parts,
        root=listing.source.root if isinstance(listing.source, FolderSource) else None,
        groups=listing.groups,
        weights=listing.weights,
        near_uniform=frozenset(dataset.near_uniform),
        left_out=dataset.left_out,
        notes=notes,
    )


def features_of_run(
    run: Run, images: LabelledParts, device: str, progress: ProgressFactory, say: Callable[[str], None]
) -> npt.NDArray[np.float32]:
    """Return the features of the run's network, float32 `[n, d]`. If the run trained its head only, they are read from its cache."""
    config = read_config(run.path)
    weights = fingerprint(run.network.state_dict()) if config.plan.full_epochs else config.weights_fingerprint
    return _features(run.network, weights, images, device, progress, say)


def features_of_backbone(
    config: FinetuneConfig, images: LabelledParts, progress: ProgressFactory, say: Callable[[str], None]
) -> npt.NDArray[np.float32]:
    """Return the features of a pretrained backbone, float32 `[n, d]`.

    Args:
        config: settings, of which the backbone, weights, preprocessing and device are used.
        images: images.
        progress: progress bar.
        say: callback for messages.

    Raises:
        WeightsError, HubError, NotFoundError, SettingsError: see `tlcli.training.models.weights.load_backbone`.
    """
    config = built_for_size(with_timms_name(config, say), say)
    backbone, weights = load_backbone(config, progress)
    network_config = NetworkConfig(
        backbone=config.backbone,
        model_kwargs=config.model_kwargs,
        head=config.head,
        num_classes=max(2, len(images.classes)),
        preprocessing=resolve_preprocessing(config, backbone),
        pretrained=config.weights != "none",
    )
    return _features(Network(network_config, backbone), weights, images, config.device, progress, say)


def _features(
    network: Network, weights: str, images: LabelledParts, device: str, progress: ProgressFactory, say: Callable[[str], None]
) -> npt.NDArray[np.float32]:
    network = network.eval().to(torch_device(device))
    cache = FeatureCache(network, weights, usable_cores(), progress, say)
    return np.concatenate([cache.embeddings(part, f"Features of the {split} part") for split, part in images.parts.items()])


def look_at(images: Part, progress: ProgressFactory = silent) -> tuple[list[Quality], list[Thumbnail]]:
    """Read each image once. Return its quality and its thumbnail.

    Raises:
        ImageError: an image can no longer be read.
    """

    def look(index: int) -> tuple[Quality, Thumbnail]:
        image = images.load(index)
        return measure_quality(image), thumbnail(image)

    qualities, thumbnails = [], []
    with progress("Measuring images", len(images)) as advance, ThreadPoolExecutor(usable_cores()) as pool:
        for quality, small in pool.map(look, range(len(images)), chunksize=16):
            qualities.append(quality)
            thumbnails.append(small)
            advance(1)
    return qualities, thumbnails


def _require_one_label(listing: Listing) -> None:
    """Check that each image has one label.

    Raises:
        DatasetError: images have several.
    """
    if listing.labels is not None:
        raise DatasetError(f"{listing.where}: images have several labels, and clean judges one in each: use another data set")
