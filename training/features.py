"""The feature cache: what the frozen side of a network makes of pictures, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from contract.errors import ExportError, SettingsError, WeightsError
from training.config import cache_dir
from training.engine import Engine, EngineName, engine_version, onnx_runtime_engine, pytorch_engine
from training.feature_store import Embeddings, UnfinishedRows, growing_rows, most_bytes, open_rows, prune
from training.loading import picture_batches
from training.network import Network
from training.parts import Part
from training.progress import ProgressFactory
from training.transforms import Augmentation

_BATCH: dict[EngineName, int] = {"pytorch": 8, "onnxruntime": 16}
"""The fastest on a CPU. Fixed, so that the features do not depend, in their last bits, on the batch size of the training."""
_GPU_BATCH = 32

_FEWEST_FOR_ONNX_RUNTIME = 1024
"""With fewer pictures, writing the graph and opening a session take longer than they save."""

_COMPARED = 8
"""Pictures on which ONNX Runtime's answers are held to PyTorch's."""


@dataclass(frozen=True)
class View:
    """One augmented look at every picture. number: from 0. seed: of the draws."""

    augmentation: Augmentation
    number: int
    seed: int


@dataclass(frozen=True)
class FeatureCache:
    """Embeddings of a network's frozen side, by what they were made of.

    On a CPU many pictures are run by ONNX Runtime, if it can run the network, all others by PyTorch. A computation that was killed is
    gone on with. Where all features take more than `feature_store.most_bytes`, those that were not used for longest are taken away.

    weights_fingerprint: of the backbone's weights, see `training.weights`.
    workers: processes that read pictures.
    say: told, a line at a time, what is out of the ordinary.
    pictures: how many are to be run in all, each view counted, where that is known.
    """

    network: Network
    weights_fingerprint: str
    workers: int
    progress: ProgressFactory
    say: Callable[[str], None] = lambda _: None
    pictures: int = 0
    _engines: dict[EngineName, Engine] = field(default_factory=dict, init=False, repr=False)
    _in_use: set[Path] = field(default_factory=set, init=False, repr=False)

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
            SettingsError: the cache cannot be written, or its size is set to what is no number.
        """
        most = most_bytes()
        name = self._engine_for(part)
        path = self._path(part, view, name)
        self._in_use.add(path)
        kept = open_rows(path, len(part))
        if kept is not None:
            return kept
        with _evaluating(self.network):
            try:
                with growing_rows(path, len(part), lambda: self.say(f"{description}: another process computes them; waiting")) as rows:
                    if rows is not None:
                        self._compute(part, view, name, rows, description)
                prune(path.parent, most, self._in_use)
            except OSError as error:
                why = error.strerror or error
                raise SettingsError(
                    f"{path.parent}: the features cannot be kept: {why}: make room, or set TLCLI_CACHE to another folder"
                ) from error
        computed = open_rows(path, len(part))
        assert computed is not None
        return computed

    def _engine_for(self, part: Part) -> EngineName:
        on_cpu = _device(self.network).type == "cpu"
        return "onnxruntime" if on_cpu and max(len(part), self.pictures) >= _FEWEST_FOR_ONNX_RUNTIME else "pytorch"

    def _opened(self, name: EngineName, part: Part) -> Engine:
        """The engine, or PyTorch in place of one that cannot run the network; each is opened once."""
        if name not in self._engines:
            try:
                opened = onnx_runtime_engine(self.network, _few(part, self.network)) if name == "onnxruntime" else None
            except ExportError as error:
                self.say(f"{self.network.config.backbone}: PyTorch computes the features, since ONNX Runtime cannot: {error}")
                opened = None
            self._engines[name] = opened or pytorch_engine(self.network)
        return self._engines[name]

    def _path(self, part: Part, view: View | None, engine: EngineName) -> Path:
        """Named by all that the embeddings depend on; the number of classes and the head's own layers are not among it."""
        config = self.network.config
        what = {
            "weights": self.weights_fingerprint,
            "network": config.model_dump(mode="json", exclude={"num_classes", "head"}),
            "embedding": config.head.split(":")[0],
            "pictures": part.fingerprints,
            "view": None if view is None else [view.augmentation.model_dump(mode="json"), view.number, view.seed],
            "device": _device(self.network).type,
            "engine": [engine, engine_version(engine)],
            "versions": {package: metadata.version(package) for package in ("torch", "timm", "pillow", "torchvision")},
        }
        key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        return cache_dir() / "features" / f"{key}.npy"

    def _compute(self, part: Part, view: View | None, name: EngineName, rows: UnfinishedRows, description: str) -> None:
        """Add the rows that are missing; of a batch of which some are, all."""
        engine = self._opened(name, part)
        before, done = rows.present, 0
        if before:
            self.say(f"{description}: those of {before:,} pictures are there, from a run that was cut short")
        batches = picture_batches(
            part,
            self.network.config.preprocessing,
            batch_size=_BATCH[name] if _device(self.network).type == "cpu" else _GPU_BATCH,
            workers=self.workers,
            augmentation=view.augmentation if view else None,
            seed=view.seed if view else 0,
            view=view.number if view else 0,
        )
        with self.progress(description, len(part)) as advance:
            for images, _ in batches:
                if done + len(images) > before:  # what is there already is read once more, which takes little beside running it
                    if done <= before:
                        rows.cut(done)
                    embeddings = engine(images)
                    if not bool(embeddings.isfinite().all()):
                        raise WeightsError(
                            f"{self.network.config.backbone}: its features of the pictures are no finite numbers:"
                            " the weights are broken, or --mean and --std are not what they were trained with"
                        )
                    rows.append(embeddings.numpy())
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


def _device(network: Network) -> torch.device:
    return next(network.parameters()).device


def _few(part: Part, network: Network) -> torch.Tensor:
    """uint8 `[N, H, W, 3]`."""
    size = network.config.preprocessing
    return torch.from_numpy(np.stack([size.apply(part.load(index)) for index in range(min(_COMPARED, len(part)))]))
