"""The feature cache: what the frozen side of a network makes of images, computed once and kept on disk."""

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
from tlcli.training.features.extractor import frozen_side
from tlcli.training.features.row_file import Embeddings, UnfinishedRows, growing_rows, most_bytes, open_rows, prune
from tlcli.training.models.network import Network
from tlcli.training.runtime.progress import ProgressFactory
from tlcli.training.settings.augmentation import Augmentation
from tlcli.training.settings.config import cache_dir

_BATCH = 32
"""Fixed, so that the features do not depend, in their last bits, on the batch size of the training."""


@dataclass(frozen=True)
class View:
    """One augmented look at every image. number: from 0. seed: of the draws."""

    augmentation: Augmentation
    number: int
    seed: int


@dataclass(frozen=True)
class FeatureCache:
    """Embeddings of a network's frozen side, by what they were made of.

    A computation that was killed is gone on with. Where all features take more than `feature_store.most_bytes`, those that
    were not used for longest are taken away.

    weights_fingerprint: of the backbone's weights, see `tlcli.training.models.weights`.
    workers: processes that read images.
    say: told, a line at a time, what is out of the ordinary.
    """

    network: Network
    weights_fingerprint: str
    workers: int
    progress: ProgressFactory
    say: Callable[[str], None] = lambda _: None
    _in_use: set[Path] = field(default_factory=set, init=False, repr=False)

    def embeddings(self, part: Part, description: str, view: View | None = None) -> Embeddings:
        """`embed(features(.))` of each image, float32 `[n, d]`, mapped into memory from its file.

        If there is no file yet, the network runs once over the images, in eval mode, batch norm included, without
        gradients: nothing of it changes.

        Args:
            part: n images.
            description: for the progress bar.
            view: augmented as it says; None for the evaluation transform.

        Raises:
            ImageError: an image that cannot be read any more.
            WeightsError: features that are no numbers.
            SettingsError: the cache cannot be written (then a ResourceError), or its size is set to what is no number.
        """
        most = most_bytes()
        path = self._path(part, view)
        self._in_use.add(path)
        kept = open_rows(path, len(part))
        if kept is not None:
            return kept
        try:
            with growing_rows(path, len(part), lambda: self.say(f"{description}: another process computes them; waiting")) as rows:
                if rows is not None:
                    self._compute(part, view, rows, description)
            prune(path.parent, most, self._in_use)
        except OSError as error:
            raise ResourceError(
                f"{path.parent}: the features cannot be kept: {error.strerror or error}: make room, or set TLCLI_CACHE to another folder"
            ) from error
        computed = open_rows(path, len(part))
        assert computed is not None
        return computed

    def _path(self, part: Part, view: View | None) -> Path:
        """Named by all that the embeddings depend on; the number of classes and the head's own layers are not among it."""
        config = self.network.config
        what = {
            "weights": self.weights_fingerprint,
            "network": config.model_dump(mode="json", exclude={"num_classes", "head"}),
            "embedding": config.head.split(":")[0],
            "images": part.fingerprints,
            "view": None if view is None else [view.augmentation.model_dump(mode="json"), view.number, view.seed],
            "device": self.network.device.type,
            "versions": {package: metadata.version(package) for package in ("torch", "timm", "pillow", "torchvision")},
            "onnxruntime": onnxruntime.__version__,
        }
        key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        return cache_dir() / "features" / f"{key}.npy"

    def _compute(self, part: Part, view: View | None, rows: UnfinishedRows, description: str) -> None:
        """Add the rows that are missing; of a batch of which some are, all."""
        keep_freed_memory()
        network, before, done = self.network, rows.present, 0
        if before:
            self.say(f"{description}: those of {before:,} images are there, from a run that was cut short")
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
            run = frozen_side(network, len(part))
            for images, _ in batches:
                if done + len(images) > before:  # what is there already is read once more, which takes little beside running it
                    if done <= before:
                        rows.cut(done)
                    embeddings = run(images)
                    if not np.isfinite(embeddings).all():
                        raise WeightsError(
                            f"{network.config.backbone}: its features of the images are no finite numbers:"
                            " the weights are broken, or --mean and --std are not what they were trained with"
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
