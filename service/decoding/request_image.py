"""A request's image as the network sees it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tlcli.contract.errors import RequestError
from tlcli.contract.images.network_input import NetworkInput
from tlcli.contract.images.preprocessing import Preprocessing


def from_pixels(data: bytes, preprocessing: Preprocessing, keep_image: bool) -> NetworkInput:
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
    return NetworkInput(image[None], (0.0, 0.0, float(width), float(height)), Image.fromarray(image) if keep_image else None)
