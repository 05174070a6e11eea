"""What a network sees while it is trained: augmented pictures, or the very input that serving makes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training.data.dataset import Part
from tlcli.training.runtime.seeds import seed_of
from tlcli.training.settings.config import FinetuneConfig

_DIGITS = ("mnist", "torch/mnist", "torch/kmnist", "torch/qmnist")
"""Data sets of written signs: mirrored or cut in half they are other signs, or none."""


class Augmentation(BaseModel):
    """Random changes that leave a picture's class as it is.

    scale: the share of the picture's area that is cut out, smallest and largest; None for the evaluation's own resize and crop.
    ratio: the aspect ratio of the cutting, likewise.
    hflip: whether half of the pictures are mirrored left to right.
    brightness, contrast, saturation: each is multiplied by a factor from 1 minus this to 1 plus this.
    shear: at most so many degrees along each side. zoom: larger or smaller by at most this share.
    rand_augment: the magnitude of two random changes, of 30; None for none (Cubuk et al. 2020, arXiv:1909.13719).
    erasing: of so many of the pictures a part is painted over with the mean colour (Zhong et al. 2020, arXiv:1708.04896).
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


@dataclass(frozen=True)
class PictureDataset(Dataset[tuple[Tensor, int, int]]):
    """The pictures of a part as network inputs, for a `DataLoader`: `(uint8 [H, W, 3] in RGB, label, index in the part)`.

    What the augmentation does to a picture depends on `seed`, `view` and the picture's index alone: not on how many
    workers there are, nor on the order of loading. Another epoch is another `view`.

    part: the pictures.
    preprocessing: the evaluation's; without an augmentation, exactly this is applied, as in serving.
    augmentation: takes its place, at the same size and with the same interpolation.
    """

    part: Part
    preprocessing: Preprocessing
    augmentation: Augmentation | None = None
    seed: int = 0
    view: int = 0

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        """Raises: PictureError: the picture cannot be read any more."""
        picture = self.part.load(index)
        if self.augmentation is None:
            values = torch.from_numpy(self.preprocessing.apply(picture))
        else:
            values = self._augment(picture, self.augmentation, index)
        return values, int(self.part.labels[index]), index

    def _augment(self, picture: Image.Image, augmentation: Augmentation, index: int) -> Tensor:
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(seed_of(self.seed, self.view, index))  # the CPU's alone: a GPU's goes on as it was
        try:
            changed = np.array(self._on_pictures(augmentation)(picture), dtype=np.uint8)
            return self._on_values(augmentation, torch.from_numpy(changed))
        finally:
            torch.set_rng_state(before)

    def _on_pictures(self, augmentation: Augmentation) -> v2.Compose:
        interpolation = v2.InterpolationMode(self.preprocessing.interpolation)
        steps: list[torch.nn.Module] = []
        if augmentation.scale is None:
            steps.append(v2.Lambda(lambda picture: Image.fromarray(self.preprocessing.apply(picture))))
        else:
            size = (self.preprocessing.height, self.preprocessing.width)
            steps.append(v2.RandomResizedCrop(size, scale=augmentation.scale, ratio=augmentation.ratio, interpolation=interpolation))
        if augmentation.hflip:
            steps.append(v2.RandomHorizontalFlip())
        if augmentation.shear or augmentation.zoom:
            shear, zoom = augmentation.shear, augmentation.zoom
            how = v2.InterpolationMode.BILINEAR
            mean = [round(255 * value) for value in self.preprocessing.mean]
            steps.append(v2.RandomAffine(0, scale=(1 - zoom, 1 + zoom), shear=(-shear, shear, -shear, shear), interpolation=how, fill=mean))
        if augmentation.rand_augment is not None:
            mean = [round(255 * value) for value in self.preprocessing.mean]
            steps.append(v2.RandAugment(magnitude=augmentation.rand_augment, num_magnitude_bins=31, fill=mean))
        if augmentation.brightness or augmentation.contrast or augmentation.saturation:
            steps.append(v2.ColorJitter(augmentation.brightness, augmentation.contrast, augmentation.saturation))
        return v2.Compose(steps)

    def _on_values(self, augmentation: Augmentation, values: Tensor) -> Tensor:
        """uint8 `[H, W, 3]`, likewise returned."""
        if not augmentation.erasing:
            return values
        mean = [float(round(255 * value)) for value in self.preprocessing.mean]
        erased: Tensor = v2.RandomErasing(augmentation.erasing, value=mean)(values.permute(2, 0, 1))
        return erased.permute(1, 2, 0).contiguous()
