"""Image source for indexed data sets: torchvision data sets, and Hugging Face data sets opened through timm."""

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
from tlcli.training.data.dataset import CheckResult, is_near_uniform
from tlcli.training.data.listing import Images, Listing
from tlcli.training.runtime.progress import Advance


class Indexed(Protocol):
    """Interface of an indexed collection of images."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image | bytes:
        """Return the image at `index`, either as a Pillow image or as encoded bytes.

        Raises:
            Exception: the underlying library failed; the type depends on the library.
        """
        ...


@dataclass(frozen=True)
class TorchvisionImages:
    """Images of a torchvision data set, where `dataset[index]` returns a Pillow image and its label."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int) -> Image.Image | bytes:
        """Return the image at `index`; see `Indexed.image`."""
        image: Image.Image = self.dataset[index][0]
        return image


@dataclass(frozen=True)
class ArraySource:
    """Image source for indexed data sets. Images are named `<spec>/<part>/<index>`."""

    parts: Mapping[str, Indexed]

    def load(self, name: str) -> Image.Image:
        """Load an image by name; see `tlcli.training.data.dataset.Source.load`."""
        return self._read(name)[0]

    def check(self, names: Sequence[str], advance: Advance) -> dict[str, CheckResult]:
        """Read each image once and report progress; see `tlcli.training.data.dataset.Source.check`."""
        results: dict[str, CheckResult] = {}
        for name in names:
            try:
                image, fingerprint = self._read(name)
                results[name] = CheckResult(fingerprint, near_uniform=is_near_uniform(image))
            except ImageError as error:
                results[name] = CheckResult("", str(error).removeprefix(f"{name}: "))
            advance(1)
        return results

    def _read(self, name: str) -> tuple[Image.Image, str]:
        """Read an image and return it with its SHA-256 fingerprint."""
        part, index = name.rsplit("/", 2)[1:]
        try:
            content = self.parts[part].image(int(index))
        except Exception as error:  # each library raises its own exception types
            raise ImageError(f"{name}: cannot be loaded: {first_line(error)}") from error
        try:
            if isinstance(content, bytes):
                return decoding.decode(content), hashlib.sha256(content).hexdigest()
            image = decoding.to_rgb(content)
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from error
        return image, hashlib.sha256(b"%d %d " % image.size + image.tobytes()).hexdigest()


def list_arrays(where: str, classes: Sequence[str], parts: Mapping[str, tuple[Indexed, npt.NDArray[np.int64]]]) -> Listing:
    """Build a listing of indexed images.

    Args:
        where: name of the data set, used in messages and as the prefix of image names.
        classes: class names, indexed by label.
        parts: images and labels `[n]` of each part: `train` and, optionally, `val` and `test`.

    Raises:
        DatasetError: a label is outside the range of `classes`.
    """
    listed: dict[str, Images] = {}
    for part, (_, labels) in parts.items():
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
            raise DatasetError(
                f"{where}: the {part} part has labels from {labels.min()} to {labels.max()}: expected 0 to {len(classes) - 1},"
                f" for {len(classes)} classes"
            )
        listed[part] = {
            name: [f"{where}/{part}/{index}" for index in np.flatnonzero(labels == label).tolist()] for label, name in enumerate(classes)
        }
    source = ArraySource({part: images for part, (images, _) in parts.items()})
    return Listing(where, tuple(classes), listed["train"], listed.get("val"), listed.get("test"), source)
