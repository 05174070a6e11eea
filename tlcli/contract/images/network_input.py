"""An image as the network sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from tlcli.contract.images import decoding
from tlcli.contract.images.decoding import ImageLimits
from tlcli.contract.images.heatmap import shrink
from tlcli.contract.images.preprocessing import Box, Preprocessing

Admit = Callable[[int], None]
"""Called with the bytes of memory that decoding and resizing are about to take, before they do; what it raises ends the work."""


@dataclass(frozen=True, eq=False)
class NetworkInput:
    """Input of the network, and its source.

    images: uint8 `[1, height, width, 3]`, RGB.
    box: the part of the image that it covers: left, top, right, bottom in the image's pixels.
    image: RGB, upright; kept only where a map is to be laid on it, and no larger than `tlcli.contract.images.heatmap.overlay` draws it.
    scale: the image's pixels for each pixel that was decoded, 1.0 or less.
    """

    images: npt.NDArray[np.uint8]
    box: Box
    image: Image.Image | None
    scale: float = 1.0


def from_encoded(data: bytes, preprocessing: Preprocessing, limits: ImageLimits, keep_image: bool, admit: Admit) -> NetworkInput:
    """Decode an image and make the input of it, as validation and `predict` do.

    Args:
        data, limits: see `tlcli.contract.images.decoding.decode`.
        preprocessing: of the model.
        keep_image: see `NetworkInput`.
        admit: see `Admit`.

    Raises:
        ImageError: see `tlcli.contract.images.decoding.decode`.
        Exception: what `admit` raises.
    """

    def on_opened(image: Image.Image) -> None:
        admit(decoding.decoding_bytes(image, data) + preprocessing.resizing_bytes(*image.size))

    photo = decoding.decode(data, limits, on_opened)
    images = preprocessing.apply(photo)[None]
    kept, scale = shrink(photo) if keep_image else (None, 1.0)
    return NetworkInput(images, preprocessing.visible_box(*photo.size), kept, scale)
