"""A request's picture as the network sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from contract import pictures
from contract.errors import RequestError
from contract.pictures import PictureLimits
from contract.preprocessing import Box, Preprocessing


@dataclass(frozen=True, eq=False)
class NetworkInput:
    """What the network is given, and where it comes from.

    images: uint8 `[1, height, width, 3]`, RGB.
    box: the part of the picture that it covers: left, top, right, bottom in the picture's pixels.
    picture: RGB, upright; kept only where a map is to be laid on it, since it may be a hundred times the input.
    """

    images: npt.NDArray[np.uint8]
    box: Box
    picture: Image.Image | None


def from_encoded(data: bytes, preprocessing: Preprocessing, limits: PictureLimits, keep_picture: bool) -> NetworkInput:
    """Decode a picture and make the input of it, as validation and `predict` do.

    Raises:
        PictureError: see `contract.pictures.decode`.
    """
    picture = pictures.decode(data, limits)
    images = preprocessing.apply(picture)[None]
    return NetworkInput(images, preprocessing.visible_box(*picture.size), picture if keep_picture else None)


def from_pixels(data: bytes, preprocessing: Preprocessing, keep_picture: bool) -> NetworkInput:
    """Take an input that the caller has made, without copying it.

    Args:
        data: RGB, a byte a channel, row by row, of the model's input size.

    Raises:
        RequestError: another length than that.
    """
    height, width = preprocessing.height, preprocessing.width
    if len(data) != height * width * 3:
        raise RequestError(
            f"pixels: {height * width * 3:,} bytes were expected, RGB of {width} x {height} pixels (width x height), {len(data):,} came"
        )
    image = np.frombuffer(data, dtype=np.uint8).reshape(height, width, 3)
    return NetworkInput(image[None], (0.0, 0.0, float(width), float(height)), Image.fromarray(image) if keep_picture else None)
