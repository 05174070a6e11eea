"""Score-CAM and Faster-Score-CAM: each channel is weighted by the score of the image masked with it. Only forward passes are needed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import RequestError
from tlcli.contract.images.heatmap import enlarge

Floats = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8]

DEFAULT_CHANNELS: dict[str, int | None] = {"scorecam": None, "faster_scorecam": 10}
"""Methods of this module, with the default number of channels that each scores; None for all."""


def is_score_cam(name: str) -> bool:
    """Return True for the name of a Score-CAM or Faster-Score-CAM map, such as `scorecam` or `scorecam@layer3`."""
    return name.partition("@")[0] in DEFAULT_CHANNELS


def check_max_channels(max_channels: int | None, names: Sequence[str]) -> None:
    """Check that `max_channels` is valid for the requested maps; None always is.

    Raises:
        RequestError: `max_channels` is below 1, or none of the maps in `names` takes it.
    """
    if max_channels is None:
        return
    if max_channels < 1:
        raise RequestError(f"max_channels {max_channels}: expected 1 or more")
    if not any(map(is_score_cam, names)):
        raise RequestError(
            f"max_channels {max_channels}: only {' and '.join(DEFAULT_CHANNELS)} take it; requested: {', '.join(names) or 'no map'}"
        )


def score_cam(
    score: Callable[[Images], Floats],
    images: Images,
    features: Floats,
    classes: npt.NDArray[np.int64],
    mean: Sequence[float],
    max_channels: int | None,
    batch_size: int | Callable[[], int],
) -> Generator[int, None, Floats]:
    """Compute Score-CAM: `relu(sum_k w_k A_k)`, where w is the softmax over channels of the class's score on images masked by A_k.

    Wang et al. 2020, arXiv:1910.01279, algorithm 1. No baseline is subtracted, since it would cancel in the softmax. With `max_channels`
    below the number of channels it is Faster-Score-CAM: the channels of the largest spatial variance, chosen for each image.

    Masked images are uint8, as the graph takes images, so their values are rounded. A constant channel masks the whole image. The result
    is the mean colour whatever the image and the channel, so it is scored only once.

    Args:
        score: function that runs masked images, uint8 `[b, H, W, 3]`, and returns a score per class, float32 `[b, C]`: logits or
            probabilities.
        images: uint8 `[N, H, W, 3]`.
        features: float32 `[N, c, h, w]`.
        classes: int64 `[N, K]`; all classes share the same forward passes.
        mean: the preprocessing's mean per channel, in [0, 1]: the colour that the network sees as zero.
        max_channels: number of channels to score; None for all.
        batch_size: number of masked images per pass, from one image or several; a function is called before each pass.

    Yields:
        The number of channels that each pass scored. The sum is N times the number of channels to score.

    Returns:
        float32 `[N, K, h, w]`.
    """
    chosen = np.stack([_most_varied(activations, max_channels) for activations in features])
    varies = np.stack([_varies(activations[channels]) for activations, channels in zip(features, chosen, strict=True)])
    scores = np.empty((*chosen.shape, classes.shape[1]))
    if not varies.all():
        blank_scores = score(mask_images(images[:1], np.zeros((1, 1, 1), np.float32), mean))[0]
        rows, columns = np.nonzero(~varies)
        scores[rows, columns] = blank_scores[classes[rows]]
        yield len(rows)
    rows, columns = np.nonzero(varies)
    start = 0
    while start < len(rows):
        stop = start + (batch_size() if callable(batch_size) else batch_size)
        row, column = rows[start:stop], columns[start:stop]
        start = stop
        masked = mask_images(images[row], features[row, chosen[row, column]], mean)
        scores[row, column] = np.take_along_axis(score(masked), classes[row], axis=1)
        yield len(row)
    return np.stack(
        [_weigh(activations[channels], image_scores) for activations, channels, image_scores in zip(features, chosen, scores, strict=True)]
    )


def mask_images(images: Images, activations: Floats, mean: Sequence[float]) -> Images:
    """Multiply normalised images by masks, so that they show the mean colour where the mask is 0.

    The mask is the channel enlarged bilinearly, then scaled to [0, 1] by its own minimum and maximum.

    Args:
        images: uint8 `[b, H, W, 3]`.
        activations: float32 `[b, h, w]`, one channel per image, no larger than the images.
        mean: in [0, 1], one value per colour.

    Returns:
        uint8 `[b, H, W, 3]`, rounded.
    """
    _, height, width, colours = images.shape
    offset = np.tile(255 * np.asarray(mean, np.float32), width)
    masked = np.empty_like(images)
    for output, image, activation in zip(masked, images, activations, strict=True):  # image by image, so that the work stays in the cache
        mask = enlarge(activation, width, height)
        mask = mask - mask.min()
        mask /= mask.max() or 1
        # A column for every colour of every pixel, so that the arithmetic below runs along whole rows.
        values = image.reshape(height, -1) - offset
        values *= np.repeat(mask, colours, axis=1)
        values += offset + np.float32(0.5)  # the added half turns the truncation to integers into rounding
        output[:] = values.reshape(output.shape)
    return masked


def _most_varied(features: Floats, count: int | None) -> npt.NDArray[np.int64]:
    """Return the indices of the `count` channels of `[c, h, w]` with the largest spatial variance; ties go to the first."""
    if count is None or count >= len(features):
        return np.arange(len(features))
    return np.argsort(-features.var(axis=(1, 2), dtype=np.float64), kind="stable")[:count]


def _varies(features: Floats) -> npt.NDArray[np.bool_]:
    flat = features.reshape(len(features), -1)
    return np.asarray(flat.max(axis=1) > flat.min(axis=1))


def _weigh(features: Floats, scores: npt.NDArray[np.float64]) -> Floats:
    """Combine channels `[m, h, w]` by their scores `[m, K]` into maps `[K, h, w]`."""
    powers = np.exp(scores - scores.max(axis=0))
    summed = np.einsum("mk,mhw->khw", powers / powers.sum(axis=0), features.astype(np.float64), optimize=True)
    return np.asarray(np.maximum(summed, 0), dtype=np.float32)
