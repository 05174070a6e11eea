"""Data sets that come as objects with an index instead of as files: torchvision's, and Hugging Face's through timm."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from tlcli.contract.errors import DatasetError, ImageError, first_line
from tlcli.contract.images import decoding
from tlcli.training.data.dataset import Checked, is_near_uniform
from tlcli.training.data.listing import Images, Listing
from tlcli.training.runtime.progress import Advance


class Indexed(Protocol):
    """An image by its index: a Pillow image, or its encoded bytes."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image | bytes:
        """Raises: Exception: whatever the library behind it raises."""
        ...


@dataclass(frozen=True)
class PairsOfTorchvision:
    """A torchvision data set: `dataset[index]` is a Pillow image and a label."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int) -> Image.Image | bytes:
        """See `Indexed`."""
        image: Image.Image = self.dataset[index][0]
        return image


@dataclass(frozen=True)
class ArraySource:
    """Images by part and index; an image's name is `<spec>/<part>/<index>`."""

    parts: Mapping[str, Indexed]

    def load(self, name: str) -> Image.Image:
        """See `tlcli.training.data.dataset.Source`."""
        return self._read(name)[0]

    def check(self, names: Sequence[str], advance: Advance) -> dict[str, Checked]:
        """See `tlcli.training.data.dataset.Source`."""
        found: dict[str, Checked] = {}
        for name in names:
            try:
                image, fingerprint = self._read(name)
                found[name] = Checked(fingerprint, near_uniform=is_near_uniform(image))
            except ImageError as error:
                found[name] = Checked("", str(error).removeprefix(f"{name}: "))
            advance(1)
        return found

    def _read(self, name: str) -> tuple[Image.Image, str]:
        """The image and its fingerprint."""
        part, index = name.rsplit("/", 2)[1:]
        try:
            kept = self.parts[part].image(int(index))
        except Exception as error:  # each library has its own
            raise ImageError(f"{name}: cannot be loaded: {first_line(error)}") from error
        try:
            if isinstance(kept, bytes):
                return decoding.decode(kept), hashlib.sha256(kept).hexdigest()
            image = decoding.to_rgb(kept)
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from error
        return image, hashlib.sha256(b"%d %d " % image.size + image.tobytes()).hexdigest()


def list_arrays(where: str, classes: Sequence[str], parts: Mapping[str, tuple[Indexed, npt.NDArray[np.int64]]]) -> Listing:
    """The listing of indexed images.

    Args:
        where: the data set, as messages and names call it.
        classes: the name of each label.
        parts: `train`, and perhaps `val` and `test`, to the images and their labels `[n]`.

    Raises:
        DatasetError: a label without a class.
    """
    listed: dict[str, Images] = {}
    for part, (_, labels) in parts.items():
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
            raise DatasetError(f"{where}: its {part} part has labels from {labels.min()} to {labels.max()}, but {len(classes)} classes")
        listed[part] = {
            name: [f"{where}/{part}/{index}" for index in np.flatnonzero(labels == label).tolist()] for label, name in enumerate(classes)
        }
    source = ArraySource({part: images for part, (images, _) in parts.items()})
    return Listing(where, tuple(classes), listed["train"], listed.get("val"), listed.get("test"), source)
