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
"""Callback that receives, before decoding starts, the number of bytes that decoding and resizing need. An exception from it aborts them."""


@dataclass(frozen=True, eq=False)
class NetworkInput:
    """Input of a network, with the image from which it was made.

    images: RGB input, uint8 `[1, height, width, 3]`.
    box: part of the decoded image that the input covers: left, top, right, bottom in pixels.
    image: decoded image for drawing overlays, scaled down to the size at which `tlcli.contract.images.heatmap.overlay` draws it; None if no
        overlay is needed.
    scale: size of `image` relative to the decoded image, at most 1.0.
    """

    images: npt.NDArray[np.uint8]
    box: Box
    image: Image.Image | None
    scale: float = 1.0


def from_encoded(data: bytes, preprocessing: Preprocessing, limits: ImageLimits, keep_image: bool, admit: Admit) -> NetworkInput:
    """Decode and preprocess an image, exactly as validation and `predict` do.

    Args:
        data, limits: see `tlcli.contract.images.decoding.decode`.
        preprocessing: preprocessing of the model.
        keep_image: keep the image for overlays; see `NetworkInput`.
        admit: memory admission callback; see `Admit`.

    Raises:
        ImageError: see `tlcli.contract.images.decoding.decode`.
        Exception: any exception from `admit`.
    """

    def on_opened(image: Image.Image) -> None:
        admit(decoding.decoding_bytes(image, data) + preprocessing.resizing_bytes(*image.size))

    photo = decoding.decode(data, limits, on_opened)
    images = preprocessing.apply(photo)[None]
    kept, scale = shrink(photo) if keep_image else (None, 1.0)
    return NetworkInput(images, preprocessing.visible_box(*photo.size), kept, scale)
