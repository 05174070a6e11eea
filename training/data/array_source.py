"""Data sets that come as objects with an index instead of as files: torchvision's, and Hugging Face's through timm."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from tlcli.contract.errors import DatasetError, PictureError, first_line
from tlcli.contract.images import decoding
from tlcli.training.data.dataset import Checked, is_near_uniform
from tlcli.training.data.listing import Listing, Pictures
from tlcli.training.runtime.progress import Advance


class Indexed(Protocol):
    """A picture by its index: a Pillow picture, or its encoded bytes."""

    def __len__(self) -> int: ...

    def picture(self, index: int) -> Image.Image | bytes:
        """Raises: Exception: whatever the library behind it raises."""
        ...


@dataclass(frozen=True)
class PairsOfTorchvision:
    """A torchvision data set: `dataset[index]` is a Pillow picture and a label."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def picture(self, index: int) -> Image.Image | bytes:
        """See `Indexed`."""
        picture: Image.Image = self.dataset[index][0]
        return picture


@dataclass(frozen=True)
class ArraySource:
    """Pictures by part and index; a picture's name is `<spec>/<part>/<index>`."""

    parts: Mapping[str, Indexed]

    def load(self, name: str) -> Image.Image:
        """See `tlcli.training.data.dataset.Source`."""
        return self._read(name)[0]

    def check(self, names: Sequence[str], advance: Advance) -> dict[str, Checked]:
        """See `tlcli.training.data.dataset.Source`."""
        found: dict[str, Checked] = {}
        for name in names:
            try:
                picture, fingerprint = self._read(name)
                found[name] = Checked(fingerprint, near_uniform=is_near_uniform(picture))
            except PictureError as error:
                found[name] = Checked("", str(error).removeprefix(f"{name}: "))
            advance(1)
        return found

    def _read(self, name: str) -> tuple[Image.Image, str]:
        """The picture and its fingerprint."""
        part, index = name.rsplit("/", 2)[1:]
        try:
            kept = self.parts[part].picture(int(index))
        except Exception as error:  # each library has its own
            raise PictureError(f"{name}: cannot be loaded: {first_line(error)}") from error
        try:
            if isinstance(kept, bytes):
                return decoding.decode(kept), hashlib.sha256(kept).hexdigest()
            picture = decoding.to_rgb(kept)
        except PictureError as error:
            raise PictureError(f"{name}: {error}") from error
        return picture, hashlib.sha256(b"%d %d " % picture.size + picture.tobytes()).hexdigest()


def list_arrays(where: str, classes: Sequence[str], parts: Mapping[str, tuple[Indexed, npt.NDArray[np.int64]]]) -> Listing:
    """The listing of indexed pictures.

    Args:
        where: the data set, as messages and names call it.
        classes: the name of each label.
        parts: `train`, and perhaps `val` and `test`, to the pictures and their labels `[n]`.

    Raises:
        DatasetError: a label without a class.
    """
    listed: dict[str, Pictures] = {}
    for part, (_, labels) in parts.items():
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
            raise DatasetError(f"{where}: its {part} part has labels from {labels.min()} to {labels.max()}, but {len(classes)} classes")
        listed[part] = {
            name: [f"{where}/{part}/{index}" for index in np.flatnonzero(labels == label).tolist()] for label, name in enumerate(classes)
        }
    source = ArraySource({part: pictures for part, (pictures, _) in parts.items()})
    return Listing(where, tuple(classes), listed["train"], listed.get("val"), listed.get("test"), source)
