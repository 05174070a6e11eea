"""Batches of a part's images, read by worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.process import BaseProcess

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from tlcli.contract.errors import ImageError, ResourceError
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training.data.dataloader_workers import begin_worker, describe_worker_error, starting_workers
from tlcli.training.data.dataset import Part
from tlcli.training.data.transforms import ImageDataset
from tlcli.training.settings.augmentation import Augmentation

_MIN_IMAGES_FOR_WORKERS = 128
"""Smallest number of images for which worker processes are started; for fewer, starting them costs more than reading."""


def batch_count(images: int, batch_size: int) -> int:
    """Return the number of batches of about equal size for `images` images, with at most `batch_size` images each.

    Unless `batch_size` is 1, no batch has a single image, which some batch norms cannot be trained on: an odd number of images in
    batches of 2 gives one batch of 3.
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
    shuffled: bool = False,
    share: tuple[int, int] = (0, 1),
    micro_batch_size: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over batches of images, uint8 `[N, H, W, 3]`, and labels, int64 `[N]`; each image occurs once.

    Batch sizes differ by at most one image; a small last batch would be a poor sample for a batch norm. The batches depend on `seed`
    and `view`, not on `workers`.

    Args:
        part: the images.
        preprocessing: transform of the evaluation; with an augmentation, the image size.
        batch_size: maximum number of images in a batch, see `batch_count`.
        workers: number of worker processes; a small number of images is read in this process.
        augmentation: random augmentation that replaces the evaluation transform.
        seed, view: seeds of the augmentation and of the order; each epoch is a view.
        shuffled: True for a random order, False for the part's.
        share: rank r and number n of processes: this process takes the r-th image of each micro-batch, and every n-th after it.
        micro_batch_size: maximum size of the micro-batches into which each batch is divided, see `batch_count`; None for a single one.

    Raises:
        ImageError: an image can no longer be read.
        ResourceError: a worker was killed, or memory ran out.
    """
    dataset = ImageDataset(part, preprocessing, augmentation, seed, view)
    order = np.random.default_rng([seed, view]).permutation(len(part)) if shuffled else np.arange(len(part))
    rank, world = share
    whole = np.array_split(order, batch_count(len(part), batch_size))
    batches = []
    for indices in whole:
        count = batch_count(len(indices), micro_batch_size or len(indices))
        batches.append([index for micro_batch in np.array_split(indices, count) for index in micro_batch[rank::world].tolist()])
    few = len(part) < _MIN_IMAGES_FOR_WORKERS
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=0 if few else workers, worker_init_fn=begin_worker)
    started: list[BaseProcess] = []
    try:
        with starting_workers(started):
            loaded = iter(loader)
        for images, labels, _ in loaded:
            yield images, labels
    except ImageError as error:
        # The text of a worker's error is its whole traceback; the message is the last line.
        raise ImageError(str(error).strip().splitlines()[-1].removeprefix("tlcli.contract.errors.ImageError: ")) from error
    except (RuntimeError, OSError, EOFError, MemoryError) as error:
        problem = describe_worker_error(error, started)
        if problem is None:
            raise
        raise ResourceError(problem) from error
