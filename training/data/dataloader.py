"""Batch iteration over a part's images, loaded by worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import DataLoader

from tlcli.contract.errors import ImageError, ResourceError
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training.data.dataloader_workers import begin_worker, describe_worker_error, starting_workers
from tlcli.training.data.dataset import Part
from tlcli.training.data.transforms import ImageDataset
from tlcli.training.settings.augmentation import Augmentation

_MIN_IMAGES_FOR_WORKERS = 128
"""Minimum number of images to start worker processes for. With fewer images, starting the workers takes longer than reading."""


class ImageBatch(NamedTuple):
    """Batch of images, uint8 `[N, H, W, 3]`, with their labels, int64 `[N]` or `[N, C]`, and their indices in the part, int64 `[N]`."""

    images: Tensor
    labels: Tensor
    indices: Tensor


def batch_count(images: int, batch_size: int) -> int:
    """Return the number of batches needed to divide `images` images about equally, with at most `batch_size` images each.

    Unless `batch_size` is 1, no batch holds a single image, because some batch norm layers cannot be trained on one. As a result, an
    odd number of images with `batch_size` 2 yields one batch of 3.
    """
    fewest = -(-images // batch_size)
    return fewest if batch_size == 1 else max(1, min(fewest, images // 2))


def image_batches(
    part: Part,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    view: int = 0,
    order: npt.NDArray[np.int64] | None = None,
    share: tuple[int, int] = (0, 1),
    micro_batch_size: int | None = None,
) -> Iterator[ImageBatch]:
    """Iterate over a part in batches.

    Batch sizes differ by at most one image, because a small last batch would give batch norm layers poor statistics. The batches
    depend on `seed`, `view` and `order`, but not on `workers`.

    Args:
        part: images to load.
        preprocessing: evaluation transform; with an augmentation, it still determines the image size and interpolation.
        batch_size: maximum batch size; see `batch_count` for the exception.
        workers: number of worker processes; small parts are read in this process.
        augmentation: random augmentation that replaces the evaluation transform.
        seed, view: seeds of the augmentation; each epoch uses its own view.
        order: indices of the images to load, int64; an image may occur several times, and is then augmented differently each time. None
            loads each image once, in the order of the part.
        share: `(rank, world_size)` of this process, which takes every `world_size`-th image of each micro-batch, starting at `rank`.
        micro_batch_size: maximum size of the micro-batches that each batch is divided into, see `batch_count`; None for no division.

    Raises:
        ImageError: an image can no longer be read.
        ResourceError: a worker process was killed, or a resource such as memory ran out.
    """
    dataset = ImageDataset(part, preprocessing, augmentation, seed, view)
    positions = np.arange(len(part)) if order is None else dataset.positions(order)
    rank, world = share
    whole = np.array_split(positions, batch_count(len(positions), batch_size))
    batches = []
    for batch in whole:
        count = batch_count(len(batch), micro_batch_size or len(batch))
        batches.append([position for micro_batch in np.array_split(batch, count) for position in micro_batch[rank::world].tolist()])
    few = len(positions) < _MIN_IMAGES_FOR_WORKERS
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=0 if few else workers, worker_init_fn=begin_worker)
    started: list[BaseProcess] = []
    try:
        with starting_workers(started):
            loaded = iter(loader)
        for tensors in loaded:
            yield ImageBatch(*tensors)
    except ImageError as error:
        # The text of a worker's error is a full traceback; its last line is the message.
        raise ImageError(str(error).strip().splitlines()[-1].removeprefix("tlcli.contract.errors.ImageError: ")) from error
    except (RuntimeError, OSError, EOFError, MemoryError) as error:
        problem = describe_worker_error(error, started)
        if problem is None:
            raise
        raise ResourceError(problem) from error
