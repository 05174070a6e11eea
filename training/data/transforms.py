"""Image transforms for network inputs: random augmentation for training, or the same preprocessing as in serving."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training.data.dataset import Part
from tlcli.training.runtime.seeds import seed_of
from tlcli.training.settings.augmentation import Augmentation


@dataclass(frozen=True)
class ImageDataset(Dataset[tuple[Tensor, int | Tensor, int]]):
    """PyTorch data set over the images of a part. Items are `(uint8 [H, W, 3] in RGB, label, index in the part)`.

    The label is a class index, or with several labels per image 0 or 1 for each class, int64 `[C]`.

    The augmentation of an image depends only on `seed`, `view` and its position, not on the number of workers or the loading order.
    Each epoch uses its own `view`. The position `index + k * len(part)` is the k-th repetition of an image, counted from 0.

    part: images to load.
    preprocessing: transform used in evaluation and serving, applied unchanged if there is no augmentation.
    augmentation: random augmentation that replaces `preprocessing`, with the same size and interpolation.
    seed, view: seeds of the random augmentation.
    """

    part: Part
    preprocessing: Preprocessing
    augmentation: Augmentation | None = None
    seed: int = 0
    view: int = 0

    def __len__(self) -> int:
        return len(self.part)

    def positions(self, order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the positions of images, given by their indices, `[n]`. Each repetition of an image has its own position."""
        by_image = np.argsort(order, kind="stable")
        sorted_order = order[by_image]
        repetitions = np.empty_like(order)
        repetitions[by_image] = np.arange(len(order)) - np.searchsorted(sorted_order, sorted_order)
        return order + len(self.part) * repetitions

    def __getitem__(self, position: int) -> tuple[Tensor, int | Tensor, int]:
        """Load and transform the image at a position.

        Raises:
            ImageError: the image can no longer be read.
        """
        repetition, index = divmod(position, len(self.part))
        image = self.part.load(index)
        if self.augmentation is None:
            values = torch.from_numpy(self.preprocessing.apply(image))
        else:
            values = self._augment(image, self.augmentation, *((index, repetition) if repetition else (index,)))
        label = self.part.labels[index]
        return values, torch.from_numpy(label) if label.ndim else int(label), index

    def _augment(self, image: Image.Image, augmentation: Augmentation, *position: int) -> Tensor:
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(seed_of(self.seed, self.view, *position))  # seeds only the CPU generator
        try:
            changed = np.array(self._on_images(augmentation)(image), dtype=np.uint8)
            return self._on_values(augmentation, torch.from_numpy(changed))
        finally:
            torch.set_rng_state(before)

    def _on_images(self, augmentation: Augmentation) -> v2.Compose:
        interpolation = v2.InterpolationMode(self.preprocessing.interpolation)
        steps: list[torch.nn.Module] = []
        if augmentation.scale is None:
            steps.append(v2.Lambda(lambda image: Image.fromarray(self.preprocessing.apply(image))))
        else:
            size = (self.preprocessing.height, self.preprocessing.width)
            steps.append(v2.RandomResizedCrop(size, scale=augmentation.scale, ratio=augmentation.ratio, interpolation=interpolation))
        if augmentation.hflip:
            steps.append(v2.RandomHorizontalFlip())
        if augmentation.shear or augmentation.zoom:
            shear, zoom = augmentation.shear, augmentation.zoom
            mean = [round(255 * value) for value in self.preprocessing.mean]
            steps.append(
                v2.RandomAffine(
                    0,
                    scale=(1 - zoom, 1 + zoom),
                    shear=(-shear, shear, -shear, shear),
                    interpolation=v2.InterpolationMode.BILINEAR,
                    fill=mean,
                )
            )
        if augmentation.rand_augment is not None:
            mean = [round(255 * value) for value in self.preprocessing.mean]
            steps.append(v2.RandAugment(magnitude=augmentation.rand_augment, num_magnitude_bins=31, fill=mean))
        if augmentation.brightness or augmentation.contrast or augmentation.saturation:
            steps.append(v2.ColorJitter(augmentation.brightness, augmentation.contrast, augmentation.saturation))
        return v2.Compose(steps)

    def _on_values(self, augmentation: Augmentation, values: Tensor) -> Tensor:
        """Apply random erasing to an image, uint8 `[H, W, 3]`."""
        if not augmentation.erasing:
            return values
        mean = [float(round(255 * value)) for value in self.preprocessing.mean]
        erased: Tensor = v2.RandomErasing(augmentation.erasing, value=mean)(values.permute(2, 0, 1))
        return erased.permute(1, 2, 0).contiguous()
