"""Random changes of training images: the fields, and the values that suit a data set."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from tlcli.training.settings.config import FinetuneConfig

_DIGITS = ("mnist", "torch/mnist", "torch/kmnist", "torch/qmnist")
"""Data sets of written signs: mirrored or cut in half they are other signs, or none."""


class Augmentation(BaseModel):
    """Random changes that leave an image's class as it is.

    scale: the share of the image's area that is cut out, smallest and largest; None for the evaluation's own resize and crop.
    ratio: the aspect ratio of the cutting, likewise.
    hflip: whether half of the images are mirrored left to right.
    brightness, contrast, saturation: each is multiplied by a factor from 1 minus this to 1 plus this.
    shear: at most so many degrees along each side. zoom: larger or smaller by at most this share.
    rand_augment: the magnitude of two random changes, of 30; None for none (Cubuk et al. 2020, arXiv:1909.13719).
    erasing: of so many of the images a part is painted over with the mean colour (Zhong et al. 2020, arXiv:1708.04896).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: tuple[float, float] | None = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: bool = True
    brightness: float = Field(default=0.2, ge=0, lt=1)
    contrast: float = Field(default=0.2, ge=0, lt=1)
    saturation: float = Field(default=0.2, ge=0, lt=1)
    shear: float = Field(default=0.0, ge=0, lt=90)
    zoom: float = Field(default=0.0, ge=0, lt=1)
    rand_augment: int | None = Field(default=None, ge=1, le=30)
    erasing: float = Field(default=0.0, ge=0, le=1)


def augmentation_of(config: FinetuneConfig) -> Augmentation:
    """What suits the data set, and what the settings say instead."""
    chosen: dict[str, object] = {
        "shear": config.shear,
        "zoom": config.zoom,
        "rand_augment": config.rand_augment,
        "erasing": config.random_erasing,
    }
    if config.crop_scale is not None:
        chosen["scale"] = None if config.crop_scale == 1 else (config.crop_scale, 1.0)
    if config.hflip is not None:
        chosen["hflip"] = config.hflip
    if config.jitter is not None:
        chosen |= dict.fromkeys(("brightness", "contrast", "saturation"), config.jitter)
    return augmentation_for(config.dataset).model_copy(update=chosen)


def augmentation_for(spec: str) -> Augmentation:
    """The augmentation that suits a data set, by what the user asked for: signs are neither mirrored nor cut much."""
    if spec.lower() in _DIGITS:
        return Augmentation(scale=(0.75, 1.0), ratio=(0.9, 1.1), hflip=False, saturation=0)
    if spec.lower() == "shapes":  # a shape may lie at the very edge
        return Augmentation(scale=(0.8, 1.0), ratio=(0.9, 1.1))
    return Augmentation()
