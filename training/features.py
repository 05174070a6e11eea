"""The feature cache: what the frozen side of a network makes of pictures, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from contract.errors import SettingsError, WeightsError
from contract.files import whole_file
from training.config import cache_dir
from training.loading import picture_batches
from training.network import Network
from training.parts import Part
from training.progress import ProgressFactory
from training.transforms import Augmentation

Embeddings = npt.NDArray[np.float32]

_BATCH = 32
"""Fixed, so that the features do not depend, in their last bits, on the batch size of the training."""


@dataclass(frozen=True)
class View:
    """One augmented look at every picture. number: from 0. seed: of the draws."""

    augmentation: Augmentation
    number: int
    seed: int


@dataclass(frozen=True)
class FeatureCache:
    """Embeddings of a network's frozen side, by what they were made of.

    weights_fingerprint: of the backbone's weights, see `training.weights`.
    workers: processes that read pictures.
    """

    network: Network
    weights_fingerprint: str
    workers: int
    progress: ProgressFactory

    def embeddings(self, part: Part, description: str, view: View | None = None) -> Embeddings:
        """`embed(features(.))` of each picture, float32 `[n, d]`, mapped into memory from its file.

        If there is no file yet, the network runs once over the pictures, in eval mode, batch norm included, without
        gradients: nothing of it changes.

        Args:
            part: n pictures.
            description: for the progress bar.
            view: augmented as it says; None for the evaluation transform.

        Raises:
            PictureError: a picture that cannot be read any more.
            WeightsError: features that are no numbers.
            SettingsError: the cache cannot be written.
        """
        path = cache_dir() / "features" / f"{self._key(part, view)}.npy"
        kept = _open(path, len(part))
        if kept is not None:
            return kept
        try:
            with whole_file(path) as temporary, self.progress(description, len(part)) as advance, temporary.open("wb") as opened:
                rows = 0
                for batch in self._computed(part, view):
                    if rows == 0:
                        shape = (len(part), batch.shape[1])
                        np.lib.format.write_array_header_1_0(opened, {"descr": "<f4", "fortran_order": False, "shape": shape})
                    opened.write(batch.numpy().astype("<f4", copy=False).tobytes())
                    rows += len(batch)
                    advance(len(batch))
        except OSError as error:
            raise SettingsError(
                f"{path.parent}: the features cannot be kept: {error.strerror or error}: make room, or set TLCLI_CACHE to another folder"
            ) from error
        computed = _open(path, len(part))
        assert computed is not None
        return computed

    def _key(self, part: Part, view: View | None) -> str:
        """Of all that the embeddings depend on; the number of classes and the head's own layers are not among it."""
        config = self.network.config
        what = {
            "weights": self.weights_fingerprint,
            "network": config.model_dump(mode="json", exclude={"num_classes", "head"}),
            "embedding": config.head.split(":")[0],
            "pictures": part.fingerprints,
            "view": None if view is None else [view.augmentation.model_dump(mode="json"), view.number, view.seed],
            "device": _device(self.network).type,
            "versions": {package: metadata.version(package) for package in ("torch", "timm", "pillow", "torchvision")},
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    @torch.inference_mode()
    def _computed(self, part: Part, view: View | None) -> Iterator[Tensor]:
        network = self.network
        with _evaluating(network):
            for images, _ in picture_batches(
                part,
                network.config.preprocessing,
                batch_size=_BATCH,
                workers=self.workers,
                augmentation=view.augmentation if view else None,
                seed=view.seed if view else 0,
                view=view.number if view else 0,
            ):
                embeddings = network.embed(network.features(network.normalise(images.to(_device(network))))).float().cpu()
                if not bool(embeddings.isfinite().all()):
                    raise WeightsError(
                        f"{network.config.backbone}: its features of the pictures are no finite numbers:"
                        " the weights are broken, or --mean and --std are not what they were trained with"
                    )
                yield embeddings


@contextmanager
def _evaluating(network: Network) -> Iterator[None]:
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def _device(network: Network) -> torch.device:
    return next(network.parameters()).device


def _open(path: Path, rows: int) -> Embeddings | None:
    """The kept embeddings, or None if there are none, or something else has damaged the file."""
    try:
        kept: Embeddings = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return kept if kept.ndim == 2 and len(kept) == rows and kept.dtype == np.float32 else None
