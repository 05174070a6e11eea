"""What a data set is once it is loaded: labelled images in a training, a validation and perhaps a test part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from tlcli.contract.images.find_images import Skipped
from tlcli.training.runtime.progress import Advance

_UNIFORM = 2.0


@dataclass(frozen=True)
class LeftOut:
    """An image that could not be read. name: as in `Part.names`. reason: one line."""

    name: str
    reason: str


@dataclass(frozen=True)
class Checked:
    """Result of reading an image once.

    fingerprint: SHA-256 in hex, of its content. reason: why it cannot be used, or None. near_uniform: see `is_near_uniform`.
    """

    fingerprint: str
    reason: str | None = None
    near_uniform: bool = False


def is_near_uniform(image: Image.Image) -> bool:
    """Check an RGB image for one colour everywhere: the standard deviation of each channel is below 2 of 255."""
    counts = np.array(image.histogram(), dtype=np.float64).reshape(3, 256) / (image.width * image.height)
    levels = np.arange(256)
    variance = counts @ levels**2 - (counts @ levels) ** 2
    return bool((variance < _UNIFORM**2).all())


class Source(Protocol):
    """Where images come from. Picklable, since the workers of a `DataLoader` load from it."""

    def load(self, name: str) -> Image.Image:
        """The image of that name, upright RGB. Raises: ImageError: it cannot be read."""
        ...

    def check(self, names: Sequence[str], advance: Advance) -> dict[str, Checked]:
        """Read each image once; `advance(n)` is called as they are done, `len(names)` in all."""
        ...


@dataclass(frozen=True, eq=False)
class Part:
    """One part of a data set: n labelled images, loaded when they are asked for.

    labels: int64 `[n]`, indices into `Dataset.classes`.
    names: one an image: its path below the data set's folder, or `cifar10/train/123`.
    fingerprints: one an image: SHA-256 in hex of its encoded content, or of its pixels where there is no file.
    source: what `load` asks.
    """

    labels: npt.NDArray[np.int64]
    names: tuple[str, ...]
    fingerprints: tuple[str, ...]
    source: Source = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Image.Image:
        """The image at `index`, upright RGB.

        Raises:
            ImageError: it cannot be read (any more); the message names it.
        """
        return self.source.load(self.names[index])

    def take(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Part:
        """The images at `indices`, in that order, as a part of their own.

        Raises:
            IndexError: an index that this part does not have.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        return Part(
            labels=self.labels[chosen],
            names=tuple(self.names[index] for index in chosen),
            fingerprints=tuple(self.fingerprints[index] for index in chosen),
            source=self.source,
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, ready to train on: every image in it has been read once.

    spec: what the user asked for.
    classes: the name of each label.
    test: None where the data set has no test part.
    left_out: broken images that were met.
    skipped: files that are no images and folders that are no classes, see `Listing`.
    near_uniform: names of images of one colour everywhere.
    notes: how the folders were taken, see `Listing`. layout: which folder is which part, in one line.
    fingerprint: SHA-256 in hex over all images' contents, their labels, the classes and the split.
    """

    spec: str
    classes: tuple[str, ...]
    train: Part
    val: Part
    test: Part | None
    left_out: tuple[LeftOut, ...]
    fingerprint: str
    skipped: tuple[Skipped, ...] = ()
    near_uniform: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    layout: str = ""

    @property
    def parts(self) -> dict[str, Part]:
        """The parts there are, by name: `train`, `val`, `test`."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}
