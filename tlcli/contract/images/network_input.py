"""Conversion of encoded images to a network's input."""

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
"""Callback that gets the memory in bytes that decoding and resizing will need, before they start. An exception from it stops the work."""


@dataclass(frozen=True, eq=False)
class NetworkInput:
    """Input of the network, and the image that it was made from.

    images: uint8 `[1, height, width, 3]`, RGB.
    box: the part of the image that the input covers: left, top, right, bottom in the image's pixels.
    image: RGB, upright; only kept for drawing overlays, and no larger than `tlcli.contract.images.heatmap.overlay` draws it.
    scale: the size of `image` relative to the decoded image, 1.0 or less.
    """

    images: npt.NDArray[np.uint8]
    box: Box
    image: Image.Image | None
    scale: float = 1.0


def from_encoded(data: bytes, preprocessing: Preprocessing, limits: ImageLimits, keep_image: bool, admit: Admit) -> NetworkInput:
    """Decode and preprocess an image, exactly as validation and `predict` do.

    Args:
        data, limits: see `tlcli.contract.images.decoding.decode`.
        preprocessing: the model's preprocessing.
        keep_image: keep the image for overlays, see `NetworkInput`.
        admit: see `Admit`.

    Raises:
        ImageError: see `tlcli.contract.images.decoding.decode`.
        Exception: an exception from `admit`.
    """

    def on_opened(image: Image.Image) -> None:
        admit(decoding.decoding_bytes(image, data) + preprocessing.resizing_bytes(*image.size))

    photo = decoding.decode(data, limits, on_opened)
    images = preprocessing.apply(photo)[None]
    kept, scale = shrink(photo) if keep_image else (None, 1.0)
    return NetworkInput(images, preprocessing.visible_box(*photo.size), kept, scale)
