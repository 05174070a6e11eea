"""Score-CAM and Faster-Score-CAM: a channel is worth the score of the image seen through it. Forward passes alone."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import RequestError
from tlcli.contract.images.heatmap import enlarge

Floats = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8]

DEFAULT_CHANNELS: dict[str, int | None] = {"scorecam": None, "faster_scorecam": 10}
"""The methods of this file, and how many channels each looks through: None for all."""


def is_score_cam(name: str) -> bool:
    """Whether a map of that name, such as `scorecam` or `scorecam@layer3`, is one of this file's."""
    return name.partition("@")[0] in DEFAULT_CHANNELS


def check_max_channels(max_channels: int | None, names: Sequence[str]) -> None:
    """Raises: RequestError: a number below 1, or none of the maps that `names` asks for looks through channels."""
    if max_channels is None:
        return
    if max_channels < 1:
        raise RequestError(f"max_channels {max_channels}: expected 1 or more")
    if not any(map(is_score_cam, names)):
        raise RequestError(
            f"max_channels {max_channels}: only {' and '.join(DEFAULT_CHANNELS)} take it; asked for: {', '.join(names) or 'no map'}"
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
    """Score-CAM: `relu(sum_k w_k A_k)`, w the softmax over channels of the class's score on the images masked by A_k.

    Wang et al. 2020, arXiv:1910.01279, algorithm 1; no baseline is subtracted, which would change nothing in the softmax. With
    fewer channels than there are it is Faster-Score-CAM: those of the largest spatial variance, chosen for each image by itself.

    An image comes masked as the graph takes images: in uint8, so each of its values is rounded to a whole number. A channel that is
    the same everywhere masks all of the image; what is left is the mean colour, whichever image and channel it was, and runs once.

    Args:
        score: runs masked images, uint8 `[b, H, W, 3]`, and returns a score a class, float32 `[b, C]`: logits or probabilities.
        images: uint8 `[N, H, W, 3]`.
        features: float32 `[N, c, h, w]`.
        classes: int64 `[N, K]`; all come from the same passes.
        mean: of the preprocessing, in [0, 1], a channel each: the colour that the network sees as zero.
        max_channels: None for all.
        batch_size: how many masked images there are at a time, from one image or several; a function is asked before each pass.

    Yields:
        After each pass, how many channels it settled; together N times the channels that are looked through.

    Returns:
        float32 `[N, K, h, w]`.
    """
    chosen = np.stack([_most_varied(one, max_channels) for one in features])
    lively = np.stack([_varies(one[channels]) for one, channels in zip(features, chosen, strict=True)])
    scores = np.empty((*chosen.shape, classes.shape[1]))
    if not lively.all():
        of_blank = score(mask_images(images[:1], np.zeros((1, 1, 1), np.float32), mean))[0]
        rows, places = np.nonzero(~lively)
        scores[rows, places] = of_blank[classes[rows]]
        yield len(rows)
    rows, places = np.nonzero(lively)
    start = 0
    while start < len(rows):
        stop = start + (batch_size() if callable(batch_size) else batch_size)
        row, place = rows[start:stop], places[start:stop]
        start = stop
        masked = mask_images(images[row], features[row, chosen[row, place]], mean)
        scores[row, place] = np.take_along_axis(score(masked), classes[row], axis=1)
        yield len(row)
    return np.stack([_weigh(one[channels], of_image) for one, channels, of_image in zip(features, chosen, scores, strict=True)])


def mask_images(images: Images, activations: Floats, mean: Sequence[float]) -> Images:
    """Images seen through channels: the normalised input times the mask, so the mean colour where the mask is 0.

    The mask is the channel enlarged bilinearly, then scaled to [0, 1] by its own minimum and maximum.

    Args:
        images: uint8 `[b, H, W, 3]`.
        activations: float32 `[b, h, w]`, a channel each, no larger than the images.
        mean: in [0, 1], a colour each.

    Returns:
        uint8 `[b, H, W, 3]`, rounded.
    """
    _, height, width, colours = images.shape
    middle = np.tile(255 * np.asarray(mean, np.float32), width)
    masked = np.empty_like(images)
    for one, image, activation in zip(masked, images, activations, strict=True):  # one by one, what is worked on stays in the cache
        mask = enlarge(activation, width, height)
        mask = mask - mask.min()
        mask /= mask.max() or 1
        # A column for every colour of every pixel, so that what follows runs along whole rows.
        seen = image.reshape(height, -1) - middle
        seen *= np.repeat(mask, colours, axis=1)
        seen += middle + np.float32(0.5)  # a half more, which makes the cut to whole numbers a rounding
        one[:] = seen.reshape(one.shape)
    return masked


def _most_varied(features: Floats, count: int | None) -> npt.NDArray[np.int64]:
    """Numbers of the `count` channels `[c, h, w]` that vary most from position to position; of equals the first."""
    if count is None or count >= len(features):
        return np.arange(len(features))
    return np.argsort(-features.var(axis=(1, 2), dtype=np.float64), kind="stable")[:count]


def _varies(features: Floats) -> npt.NDArray[np.bool_]:
    flat = features.reshape(len(features), -1)
    return np.asarray(flat.max(axis=1) > flat.min(axis=1))


def _weigh(features: Floats, scores: npt.NDArray[np.float64]) -> Floats:
    """Channels `[m, h, w]` and their scores `[m, K]` to maps `[K, h, w]`."""
    powers = np.exp(scores - scores.max(axis=0))
    summed = np.einsum("mk,mhw->khw", powers / powers.sum(axis=0), features.astype(np.float64), optimize=True)
    return np.asarray(np.maximum(summed, 0), dtype=np.float32)
