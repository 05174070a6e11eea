"""Images of a part in batches, read by several processes."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.process import BaseProcess

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from tlcli.contract.errors import ImageError, ResourceError
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training.data.dataloader_workers import begin_worker, problem_of_workers, starting_workers
from tlcli.training.data.dataset import Part
from tlcli.training.data.transforms import ImageDataset
from tlcli.training.settings.augmentation import Augmentation

_FEWEST_FOR_WORKERS = 128
"""Starting processes costs more than reading fewer images than this."""


def batch_count(images: int, batch_size: int) -> int:
    """Return the number of batches of about equal size that `images` make, of at most `batch_size` each.

    None has a single image, of which some batch norms can make nothing, unless `batch_size` is 1: an odd number in batches of 2
    makes one of 3.
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
    part_size: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images uint8 `[N, H, W, 3]` and labels int64 `[N]`, each image once.

    Batches differ by at most one image in size, rather than that the last is a small rest, which would be a poor
    sample for a batch norm. What comes depends on `seed` and `view` alone, not on `workers`.

    Args:
        part: the images.
        preprocessing: the evaluation's; and the size of what is augmented.
        batch_size: at most, see `batch_count`.
        workers: processes; few images are read in this one.
        augmentation: in place of the evaluation transform.
        seed, view: of the augmentation's draws and of the order; epochs are views.
        shuffled: in random order; otherwise in the part's.
        share: (r, n): of each part of a batch the r-th image and every n-th from there.
        part_size: each batch is run in parts of at most this size, see `batch_count`; None for one part.

    Raises:
        ImageError: an image that cannot be read any more.
        ResourceError: a worker was killed, or there is no memory for it.
    """
    dataset = ImageDataset(part, preprocessing, augmentation, seed, view)
    order = np.random.default_rng([seed, view]).permutation(len(part)) if shuffled else np.arange(len(part))
    rank, world = share
    whole = np.array_split(order, batch_count(len(part), batch_size))
    batches = []
    for indices in whole:
        parts = batch_count(len(indices), part_size or len(indices))
        batches.append([index for some in np.array_split(indices, parts) for index in some[rank::world].tolist()])
    few = len(part) < _FEWEST_FOR_WORKERS
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=0 if few else workers, worker_init_fn=begin_worker)
    started: list[BaseProcess] = []
    try:
        with starting_workers(started):
            loaded = iter(loader)
        for images, labels, _ in loaded:
            yield images, labels
    except ImageError as error:
        # A worker's error arrives with its whole traceback as its text; the message is the last line.
        raise ImageError(str(error).strip().splitlines()[-1].removeprefix("tlcli.contract.errors.ImageError: ")) from error
    except (RuntimeError, OSError, EOFError, MemoryError) as error:
        problem = problem_of_workers(error, started)
        if problem is None:
            raise
        raise ResourceError(problem) from error
