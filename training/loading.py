"""Pictures of a part in batches, read by several processes."""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from contract.errors import PictureError, ResourceError, first_line
from contract.preprocessing import Preprocessing
from training.orphans import end_with_parent
from training.parts import Part
from training.transforms import Augmentation, PictureDataset

_MEMORY = "/dev/shm"

_FEWEST_FOR_WORKERS = 128
"""Starting processes costs more than reading fewer pictures than this."""


def batch_count(pictures: int, batch_size: int) -> int:
    """How many batches of about equal size `pictures` make, of at most `batch_size` each.

    None has a single image, of which some batch norms can make nothing, unless `batch_size` is 1: an odd number in batches of 2
    makes one of 3.
    """
    fewest = -(-pictures // batch_size)
    return fewest if batch_size == 1 else max(1, min(fewest, pictures // 2))


def picture_batches(
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
    """Images uint8 `[N, H, W, 3]` and labels int64 `[N]`, each picture once.

    Batches differ by at most one picture in size, rather than that the last is a small rest, which would be a poor
    sample for a batch norm. What comes depends on `seed` and `view` alone, not on `workers`.

    Args:
        part: the pictures.
        preprocessing: the evaluation's; and the size of what is augmented.
        batch_size: at most, see `batch_count`.
        workers: processes; few pictures are read in this one.
        augmentation: in place of the evaluation transform.
        seed, view: of the augmentation's draws and of the order; epochs are views.
        shuffled: in random order; otherwise in the part's.
        share: (r, n): of each part of a batch the r-th picture and every n-th from there.
        part_size: each batch is run in parts of at most this size, see `batch_count`; None for one part.

    Raises:
        PictureError: a picture that cannot be read any more.
        ResourceError: a worker was killed, or there is no memory for it.
    """
    dataset = PictureDataset(part, preprocessing, augmentation, seed, view)
    order = np.random.default_rng([seed, view]).permutation(len(part)) if shuffled else np.arange(len(part))
    rank, world = share
    whole = np.array_split(order, batch_count(len(part), batch_size))
    batches = []
    for indices in whole:
        parts = batch_count(len(indices), part_size or len(indices))
        batches.append([index for some in np.array_split(indices, parts) for index in some[rank::world].tolist()])
    few = len(part) < _FEWEST_FOR_WORKERS
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=0 if few else workers, worker_init_fn=_begin_worker)
    try:
        with worker_errors():
            with _interrupted_later():
                loaded = iter(loader)
            for images, labels, _ in loaded:
                yield images, labels
    except PictureError as error:
        # A worker's error arrives with its whole traceback as its text; the message is the last line.
        raise PictureError(str(error).strip().splitlines()[-1].removeprefix("contract.errors.PictureError: ")) from error


@contextmanager
def worker_errors() -> Iterator[None]:
    """Turn what PyTorch raises when a worker ends, which it does at any line of this process, into an error of ours.

    Raises:
        ResourceError: a worker was killed, or there is no memory for it.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        problem = _problem_of_workers(error)
        if problem is None:
            raise
        raise ResourceError(problem) from error


_INTERRUPTS = {signal.SIGINT, signal.SIGTERM}


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Hold signals back while workers start: one that is interrupted before `_begin_worker` would print a traceback."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(_: int) -> None:
    """Leave Ctrl-C to the training process, which ends its workers, and end with it; die of a bus error without a second message."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGBUS, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
    end_with_parent()


def _problem_of_workers(error: BaseException) -> str | None:
    """Say what is wrong with the processes that read, and the way out, in one line; None if it is something else."""
    text = str(error)
    killed = re.search(r"DataLoader worker \(pid (\d+)\) is killed by signal: ([^.]*)", text)
    exited = re.search(r"DataLoader worker \(pid\(s\) ([\d, ]+)\) exited unexpectedly", text)
    if (killed and "Bus" in killed[2]) or "shared memory" in text or "torch_shm_manager" in text or "(shm)" in text:
        return (
            f"shared memory is full ({_MEMORY}): processes that read images pass them on through it: use fewer --workers or 0, a"
            " smaller --batch-size, or make it larger (docker run --shm-size=2g)"
        )
    if killed or exited:
        how = f"was killed ({killed[2]})" if killed else "ended unexpectedly"
        number = killed[1] if killed else exited[1] if exited else ""
        return f"process {number}, which reads images, {how}, probably out of memory: use fewer --workers or 0, or a smaller --batch-size"
    if getattr(error, "errno", None) == errno.ENOMEM or "MemoryError in DataLoader worker" in text or "Cannot allocate memory" in text:
        return "out of memory in a process that reads images: use fewer --workers or 0, or a smaller --batch-size"
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.EAGAIN) or "Too many open files" in text:
        return f"processes that read images cannot be started or read from ({first_line(error)}): use fewer --workers or 0, or raise ulimit"
    return None
