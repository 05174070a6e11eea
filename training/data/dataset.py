"""Data set of labelled images, divided into a training part, a validation part and an optional test part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from tlcli.contract.images.find_images import Skipped
from tlcli.contract.model.description import Task
from tlcli.training.runtime.progress import Advance

_UNIFORM = 2.0


@dataclass(frozen=True)
class LeftOut:
    """Image that could not be read.

    name: name of the image, as in `Part.names`. reason: one-line description of the problem.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class CheckResult:
    """Result of reading an image once.

    fingerprint: SHA-256 of the content, in hex. reason: why the image cannot be used; None for a usable image.
    near_uniform: True if the image has nearly one colour; see `is_near_uniform`.
    """

    fingerprint: str
    reason: str | None = None
    near_uniform: bool = False


def is_near_uniform(image: Image.Image) -> bool:
    """Return True if an RGB image has nearly one colour: the standard deviation of each channel is below 2 on a scale of 0 to 255."""
    counts = np.array(image.histogram(), dtype=np.float64).reshape(3, 256) / (image.width * image.height)
    levels = np.arange(256)
    variance = counts @ levels**2 - (counts @ levels) ** 2
    return bool((variance < _UNIFORM**2).all())


class Source(Protocol):
    """Image source that loads and checks images by name. It must be picklable, because `DataLoader` workers load from it."""

    def load(self, name: str) -> Image.Image:
        """Load an image as RGB, rotated upright.

        Raises:
            ImageError: the image cannot be read.
        """
        ...

    def check(self, names: Sequence[str], advance: Advance) -> dict[str, CheckResult]:
        """Read each image once and return the results by name. Progress is reported through `advance`, `len(names)` steps in total."""
        ...


@dataclass(frozen=True, eq=False)
class Part:
    """Part of a data set: n labelled images, loaded on demand.

    labels: class indices into `Dataset.classes`, int64 `[n]`; with several labels per image, 1 for each class of an image and 0 for the
        others, int64 `[n, C]`.
    names: name of each image: its path below the data set's folder, or an identifier such as `cifar10/train/123`.
    fingerprints: SHA-256 of each image in hex, computed from the encoded content, or from the pixels if there is no encoded content.
    source: image source used by `load`.
    weights: weight of each image in the training loss, float32 `[n]`; None if all weigh the same.
    """

    labels: npt.NDArray[np.int64]
    names: tuple[str, ...]
    fingerprints: tuple[str, ...]
    source: Source = field(repr=False)
    weights: npt.NDArray[np.float32] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def task(self) -> Task:
        """`multi-label` if images have several labels."""
        return "multi-label" if self.labels.ndim == 2 else "single-label"

    def class_counts(self, classes: int) -> list[int]:
        """Return the number of images of each of the C classes."""
        counts: list[int] = (self.labels.sum(0) if self.labels.ndim == 2 else np.bincount(self.labels, minlength=classes)).tolist()
        return counts

    def labels_of(self, index: int, classes: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the classes of an image: one, or with several labels per image any number, in label order."""
        label = self.labels[index]
        return tuple(classes[number] for number in np.flatnonzero(label).tolist()) if label.ndim else (classes[int(label)],)

    def load(self, index: int) -> Image.Image:
        """Load the image at `index` as RGB, rotated upright.

        Raises:
            ImageError: the image can no longer be read; the message includes its name.
        """
        return self.source.load(self.names[index])

    def take(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Part:
        """Return a new part with the images at `indices`, in that order.

        Raises:
            IndexError: an index is out of range.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        return Part(
            labels=self.labels[chosen],
            names=tuple(self.names[index] for index in chosen),
            fingerprints=tuple(self.fingerprints[index] for index in chosen),
            source=self.source,
            weights=None if self.weights is None else self.weights[chosen],
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """Data set ready for training. Every image in it has been read once.

    spec: value of `--dataset`.
    classes: class names, indexed by label.
    train, val, test: parts of the data set; `test` is None if there is no test part.
    left_out: images that could not be read.
    fingerprint: SHA-256 in hex over the image contents, labels, classes and the split.
    skipped: files that are not images and folders that are not classes; see `Listing`.
    near_uniform: names of images with nearly one colour.
    notes: remarks on how the folders were interpreted; see `Listing`.
    layout: one-line summary of the folder of each part.
    group_column: column of a label file whose groups are kept together; empty if there are none. groups: number of groups by part.
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
    group_column: str = ""
    groups: Mapping[str, int] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        """`multi-label` if images have several labels."""
        return self.train.task

    @property
    def parts(self) -> dict[str, Part]:
        """Parts by name: `train`, `val` and, if it exists, `test`."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}
