"""Order in which the training images of an epoch are drawn."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tlcli.training.settings.config import Sampler

Indices = npt.NDArray[np.int64]


def epoch_order(sampler: Sampler, labels: npt.NDArray[np.int64], seed: int, epoch: int) -> Indices:
    """Return the indices of the images of an epoch in the order of training, `[n]` for n training images.

    The order depends on nothing but the arguments, so that a resumed run draws the same images, and so does every process.

    Args:
        sampler: `shuffled` draws each image once; see `balanced_order` for `balanced`.
        labels: class indices of the training images, int64 `[n]`.
        seed: seed of the run.
        epoch: index of the epoch within its stage, starting at 0.
    """
    rng = np.random.default_rng([seed, epoch])
    return balanced_order(labels, rng) if sampler == "balanced" else rng.permutation(len(labels))


def balanced_order(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> Indices:
    """Return n indices of n images in random order, with the same number of images from each class.

    If the classes do not divide n, the remaining images come from classes that are chosen at random. An image occurs as often as any
    other image of its class, or once more: classes are not drawn with replacement, which would leave out images by chance.
    """
    present = np.unique(labels)
    share, rest = divmod(len(labels), len(present))
    larger = set(rng.permutation(present)[:rest].tolist())
    drawn = [_draw(np.flatnonzero(labels == label), share + (int(label) in larger), rng) for label in present]
    return rng.permutation(np.concatenate(drawn))


def _draw(indices: Indices, count: int, rng: np.random.Generator) -> Indices:
    """Return `count` of the indices: all of them as often as they fit, and a random selection for the rest."""
    times, rest = divmod(count, len(indices))
    return np.concatenate([np.repeat(indices, times), rng.permutation(indices)[:rest]])
