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

from contract.preprocessing import Preprocessing
from training.parts import Part

_DIGITS = ("mnist", "torch/mnist", "torch/kmnist", "torch/qmnist")
"""Data sets of written signs: mirrored or cut in half they are other signs, or none."""


class Augmentation(BaseModel):
    """Random changes that leave a picture's class as it is.

    scale: the share of the picture's area that is cut out, smallest and largest.
    ratio: the aspect ratio of the cutting, likewise.
    hflip: whether half of the pictures are mirrored left to right.
    brightness, contrast, saturation: each is multiplied by a factor from 1 minus this to 1 plus this.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: bool = True
    brightness: float = Field(default=0.2, ge=0, lt=1)
    contrast: float = Field(default=0.2, ge=0, lt=1)
    saturation: float = Field(default=0.2, ge=0, lt=1)


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
            values = self.preprocessing.apply(picture)
        else:
            values = np.array(self._augment(picture, self.augmentation, index), dtype=np.uint8)
        return torch.from_numpy(values), int(self.part.labels[index]), index

    def _augment(self, picture: Image.Image, augmentation: Augmentation, index: int) -> Image.Image:
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(_seed_of(self.seed, self.view, index))  # the CPU's alone: a GPU's goes on as it was
        try:
            augmented: Image.Image = self._transform(augmentation)(picture)
        finally:
            torch.set_rng_state(before)
        return augmented

    def _transform(self, augmentation: Augmentation) -> v2.Compose:
        steps: list[torch.nn.Module] = [
            v2.RandomResizedCrop(
                (self.preprocessing.height, self.preprocessing.width),
                scale=augmentation.scale,
                ratio=augmentation.ratio,
                interpolation=v2.InterpolationMode(self.preprocessing.interpolation),
            )
        ]
        if augmentation.hflip:
            steps.append(v2.RandomHorizontalFlip())
        steps.append(v2.ColorJitter(augmentation.brightness, augmentation.contrast, augmentation.saturation))
        return v2.Compose(steps)


def _seed_of(*numbers: int) -> int:
    """One seed of 64 bits from several numbers, as unlike as possible for numbers that are near each other."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
