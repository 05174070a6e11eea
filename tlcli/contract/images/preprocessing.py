"""Preprocessing of images: resizing and cropping, and the normalisation constants. The normalisation itself is part of the graph."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
CropMode = Literal["center", "squash", "border"]
Box = tuple[float, float, float, float]

_MAX_RESIZED_PIXELS = 50_000_000


class Preprocessing(BaseModel):
    """Evaluation transform, with the same arithmetic and image library as timm's `create_transform(is_training=False)`.

    height, width: size of the network's input in pixels.
    crop_pct: share of the resized image's shorter side that the crop keeps, in (0, 1].
    crop_mode: `center` resizes the shorter side and crops the centre; `squash` ignores the aspect ratio; `border` fits the whole
        image into the input and pads with the mean colour.
    interpolation: Pillow's antialiased resampling filter.
    mean, std: mean and standard deviation per channel for values in [0, 1]; the graph applies them as `(x / 255 - mean) / std`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    crop_pct: float = Field(default=0.875, gt=0, le=1)
    crop_mode: CropMode = "center"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def apply(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Resize and crop an RGB image to the network's input.

        Returns:
            A C-contiguous, writable array, uint8 `[height, width, 3]`.
        """
        size, (left, top) = self._placement(*image.size)
        if size[0] * size[1] > _MAX_RESIZED_PIXELS and self.crop_mode == "center":
            # The image is hundreds of times longer than wide: resize only its visible part.
            box = self.visible_box(*image.size)
            image = image.resize((self.width, self.height), Image.Resampling[self.interpolation.upper()], box=box)
            return np.array(image, dtype=np.uint8)
        if size != image.size:
            image = image.resize(size, Image.Resampling[self.interpolation.upper()])
        if size != (self.width, self.height):
            canvas = Image.new("RGB", (self.width, self.height), tuple(round(255 * value) for value in self.mean))
            canvas.paste(image, (-left, -top))
            image = canvas
        return np.array(image, dtype=np.uint8)

    def resizing_bytes(self, width: int, height: int) -> int:
        """Return the number of bytes that `apply` needs for a `width` x `height` image.

        They hold the resized image, an intermediate image that is resized along one axis only, and the input.
        """
        (across, down), _ = self._placement(width, height)
        if across * down > _MAX_RESIZED_PIXELS and self.crop_mode == "center":
            across, down = self.width, self.height
        return 4 * (across * down + across * height + self.width * self.height)

    def visible_box(self, width: int, height: int) -> Box:
        """Return the part of a `width` x `height` image that the input, and therefore a map, covers.

        Returns:
            Left, top, right, bottom in pixels of the image. With `border`, the box may extend beyond the image.
        """
        (resized_width, resized_height), (left, top) = self._placement(width, height)
        across, down = width / resized_width, height / resized_height
        return left * across, top * down, (left + self.width) * across, (top + self.height) * down

    def _placement(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the size to which an image is resized, and the position of the input's top left corner in the resized image.

        Negative coordinates mean padding.
        """
        scaled = (math.floor(self.width / self.crop_pct), math.floor(self.height / self.crop_pct))
        if self.crop_mode == "squash":
            size = scaled
        elif self.crop_mode == "center" and scaled[0] == scaled[1]:
            # torchvision's Resize(int): the shorter side exactly, the longer one truncated.
            short = min(width, height)
            size = (max(1, int(scaled[0] * width / short)), max(1, int(scaled[0] * height / short)))
        else:
            # timm's ResizeKeepRatio: scale to cover the input (center) or to fit into it (border).
            ratios = (width / scaled[0], height / scaled[1])
            ratio = min(ratios) if self.crop_mode == "center" else max(ratios)
            size = (max(1, round(width / ratio)), max(1, round(height / ratio)))
        return size, (_half(size[0] - self.width), _half(size[1] - self.height))


def _half(excess: int) -> int:
    return round(excess / 2) if excess >= 0 else -(-excess // 2)
