"""On-disk cache of frozen features, the embeddings that a frozen backbone computes for each image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime

from tlcli.contract.errors import ResourceError, WeightsError
from tlcli.contract.process.malloc import keep_freed_memory
from tlcli.training.data.dataloader import image_batches
from tlcli.training.data.dataset import Part
from tlcli.training.features.extractor import build_extractor
from tlcli.training.features.row_file import Embeddings, UnfinishedRows, growing_rows, max_cache_bytes, open_rows, prune
from tlcli.training.models.network import Network
from tlcli.training.runtime.progress import ProgressFactory
from tlcli.training.settings.augmentation import Augmentation
from tlcli.training.settings.config import cache_dir

_BATCH = 32
"""Batch size for feature extraction. It is fixed so that the last bits of the features do not depend on the training batch size."""


@dataclass(frozen=True)
class View:
    """Augmented view of every image of a part.

    number: index of the view, starting at 0. seed: seed of the random augmentation.
    """

    augmentation: Augmentation
    number: int
    seed: int


@dataclass(frozen=True)
class FeatureCache:
    """Cache of the embeddings of a network's frozen layers, keyed by everything the embeddings depend on.

    Interrupted computations are resumed. When the total size exceeds `row_file.max_cache_bytes`, the least recently used files are
    evicted.

    weights_fingerprint: fingerprint of the backbone's weights; see `tlcli.training.models.weights`.
    workers: number of worker processes that read images.
    say: callback for messages, one line at a time.
    """

    network: Network
    weights_fingerprint: str
    workers: int
    progress: ProgressFactory
    say: Callable[[str], None] = lambda _: None
    _in_use: set[Path] = field(default_factory=set, init=False, repr=False)

    def embeddings(self, part: Part, description: str, view: View | None = None) -> Embeddings:
        """Return the embedding `embed(features(x))` of each image x, float32 `[n, d]`, memory-mapped from the cache file.

        If the file does not exist, the network runs once over the images, in eval mode and without gradients. Its weights and batch
        norm statistics do not change.

        Args:
            part: part with n images.
            description: label of the progress bar.
            view: augmented view of the images; None for the evaluation transform.

        Raises:
            ImageError: an image can no longer be read.
            WeightsError: the features are not finite.
            ResourceError: the cache cannot be written.
            SettingsError: `TLCLI_CACHE_GB` is not a valid number.
        """
        limit = max_cache_bytes()
        path = self._path(part, view)
        self._in_use.add(path)
        cached = open_rows(path, len(part))
        if cached is not None:
            return cached
        try:
            with growing_rows(path, len(part), lambda: self.say(f"{description}: waiting for another process to compute them")) as rows:
                if rows is not None:
                    self._compute(part, view, rows, description)
            prune(path.parent, limit, self._in_use)
        except OSError as error:
            raise ResourceError(
                f"{path.parent}: cannot store the features: {error.strerror or error}: free disk space, or set TLCLI_CACHE to another"
                " folder"
            ) from error
        computed = open_rows(path, len(part))
        assert computed is not None
        return computed

    def _path(self, part: Part, view: View | None) -> Path:
        """Return the cache file for a part and a view, named by a hash of everything the embeddings depend on.

        The embeddings do not depend on the number of classes or on the layers of the head.
        """
        config = self.network.config
        dependencies = {
            "weights": self.weights_fingerprint,
            "network": config.model_dump(mode="json", exclude={"num_classes", "head"}),
            "embedding": config.head.split(":")[0],
            "images": part.fingerprints,
            "view": None if view is None else [view.augmentation.model_dump(mode="json"), view.number, view.seed],
            "device": self.network.device.type,
            "versions": {package: metadata.version(package) for package in ("torch", "timm", "pillow", "torchvision")},
            "onnxruntime": onnxruntime.__version__,
        }
        key = hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()
        return cache_dir() / "features" / f"{key}.npy"

    def _compute(self, part: Part, view: View | None, rows: UnfinishedRows, description: str) -> None:
        """Compute and append the missing rows. A partially stored batch is recomputed as a whole."""
        keep_freed_memory()
        network, before, done = self.network, rows.present, 0
        if before:
            self.say(f"{description}: continuing an interrupted computation, {before:,} images done")
        batches = image_batches(
            part,
            network.config.preprocessing,
            batch_size=_BATCH,
            workers=self.workers,
            augmentation=view.augmentation if view else None,
            seed=view.seed if view else 0,
            view=view.number if view else 0,
        )
        with _evaluating(network), self.progress(description, len(part)) as advance:
            extract = build_extractor(network, len(part))
            for images, _, _ in batches:
                if done + len(images) > before:  # images with stored rows are read again, which is cheap compared to inference
                    if done <= before:
                        rows.truncate(done)
                    embeddings = extract(images)
                    if not np.isfinite(embeddings).all():
                        raise WeightsError(
                            f"{network.config.backbone}: the features are not finite: use undamaged --weights, and the --mean and --std"
                            " that these were trained with"
                        )
                    rows.append(embeddings)
                done += len(images)
                advance(len(images))


@contextmanager
def _evaluating(network: Network) -> Iterator[None]:
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)
