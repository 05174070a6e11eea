"""Settings for the random augmentation of training images, with defaults for each data set."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from tlcli.training.settings.config import FinetuneConfig

_DIGITS = ("mnist", "torch/mnist", "torch/kmnist", "torch/qmnist")
"""Data sets of handwritten characters. Mirroring or tight cropping can turn a character into another one or make it unreadable."""


class Augmentation(BaseModel):
    """Settings of random image transforms that preserve the class.

    scale: minimum and maximum area of the random crop, as a fraction of the image; None for the resize and crop used in evaluation.
    ratio: minimum and maximum aspect ratio of the random crop.
    hflip: True to flip images horizontally with probability 0.5.
    brightness, contrast, saturation: jitter strength x; the random factor ranges from 1 - x to 1 + x.
    shear: maximum shear along each axis, in degrees. zoom: maximum change of scale, as a fraction of the image size.
    rand_augment: magnitude, out of 30, of RandAugment's two random operations; None to disable (Cubuk et al. 2020, arXiv:1909.13719).
    erasing: fraction of images in which a random rectangle is filled with the mean colour (Zhong et al. 2020, arXiv:1708.04896).
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
    """Return the default augmentation of the data set, with the overrides in `config` applied."""
    overrides: dict[str, object] = {
        "shear": config.shear,
        "zoom": config.zoom,
        "rand_augment": config.rand_augment,
        "erasing": config.random_erasing,
    }
    if config.crop_scale is not None:
        overrides["scale"] = None if config.crop_scale == 1 else (config.crop_scale, 1.0)
    if config.hflip is not None:
        overrides["hflip"] = config.hflip
    if config.jitter is not None:
        overrides |= dict.fromkeys(("brightness", "contrast", "saturation"), config.jitter)
    return default_augmentation(config.dataset).model_copy(update=overrides)


def default_augmentation(spec: str) -> Augmentation:
    """Return the default augmentation of a data set. Handwritten characters are not flipped and are cropped only slightly.

    Args:
        spec: value of `--dataset`.
    """
    if spec.lower() in _DIGITS:
        return Augmentation(scale=(0.75, 1.0), ratio=(0.9, 1.1), hflip=False, saturation=0)
    if spec.lower() == "shapes":  # a tight crop could remove a shape that touches the edge
        return Augmentation(scale=(0.8, 1.0), ratio=(0.9, 1.1))
    return Augmentation()
