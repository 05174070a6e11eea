"""Score-CAM and Faster-Score-CAM, which weight each channel by the score of the image masked with it. They need only forward passes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import RequestError
from tlcli.contract.images.heatmap import enlarge

Floats = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8]

DEFAULT_CHANNELS: dict[str, int | None] = {"scorecam": None, "faster_scorecam": 10}
"""Default number of channels to score for each method of this module; None scores all channels."""


def is_score_cam(name: str) -> bool:
    """Return True if `name` is a Score-CAM or Faster-Score-CAM map, such as `scorecam` or `scorecam@layer3`."""
    return name.partition("@")[0] in DEFAULT_CHANNELS


def check_max_channels(max_channels: int | None, names: Sequence[str]) -> None:
    """Check that `max_channels` is valid for the requested maps. None is always valid.

    Raises:
        RequestError: `max_channels` is below 1, or none of the maps in `names` uses it.
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
    """Compute Score-CAM, `relu(sum_k w_k A_k)`, where w is the softmax over channels of the class's score on the image masked by A_k.

    The method is algorithm 1 of Wang et al. 2020, arXiv:1910.01279. No baseline is subtracted, because it would cancel in the softmax. With
    `max_channels` below the number of channels, the method is Faster-Score-CAM, which scores only the channels with the largest spatial
    variance, chosen for each image.

    Masked images are uint8, the input type of the graph, so their values are rounded. A constant channel masks the entire image. The masked
    image then has the mean colour regardless of the image and the channel, so it is scored only once.

    Args:
        score: function that runs the network on masked images, uint8 `[b, H, W, 3]`, and returns the logits or probabilities of all
            classes, float32 `[b, C]`.
        images: uint8 `[N, H, W, 3]`.
        features: activations of the explained layer, float32 `[N, c, h, w]`.
        classes: classes to explain, int64 `[N, K]`; all classes share the same forward passes.
        mean: mean per colour channel of the preprocessing, in [0, 1]; this is the colour that the network sees as zero.
        max_channels: number of channels to score; None scores all channels.
        batch_size: number of masked images per forward pass, which may come from several images; a function is called before each pass to
            get the current batch size.

    Yields:
        The number of channels scored by each pass. The sum is N times the number of channels to score.

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
    """Multiply normalised images by masks. The result has the mean colour where the mask is 0.

    Each mask is a channel that is upsampled bilinearly, then scaled to [0, 1] by its own minimum and maximum.

    Args:
        images: uint8 `[b, H, W, 3]`.
        activations: float32 `[b, h, w]`, one channel per image, no larger than the images.
        mean: mean per colour channel, in [0, 1].

    Returns:
        Masked images, uint8 `[b, H, W, 3]`, with rounded values.
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
    """Return the indices of the `count` channels in `[c, h, w]` with the largest spatial variance.

    Among channels with equal variance, the first ones are chosen. All channels are returned if `count` is None or too large.
    """
    if count is None or count >= len(features):
        return np.arange(len(features))
    return np.argsort(-features.var(axis=(1, 2), dtype=np.float64), kind="stable")[:count]


def _varies(features: Floats) -> npt.NDArray[np.bool_]:
    flat = features.reshape(len(features), -1)
    return np.asarray(flat.max(axis=1) > flat.min(axis=1))


def _weigh(features: Floats, scores: npt.NDArray[np.float64]) -> Floats:
    """Combine channels `[m, h, w]` into maps `[K, h, w]`, weighted by the softmax of their scores `[m, K]`, and rectify the maps."""
    powers = np.exp(scores - scores.max(axis=0))
    summed = np.einsum("mk,mhw->khw", powers / powers.sum(axis=0), features.astype(np.float64), optimize=True)
    return np.asarray(np.maximum(summed, 0), dtype=np.float32)
