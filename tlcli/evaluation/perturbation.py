"""Image perturbation and scoring shared by the faithfulness metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

import numpy as np
import numpy.typing as npt

from tlcli.contract.images.heatmap import enlarge
from tlcli.contract.model.onnx_model import Model

Bytes = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

Score = Callable[[Iterable[Bytes]], Floats]
"""Function that runs the model on any number of uint8 inputs `[H, W, 3]` and returns the probability of one class for each, `[n]`."""


def class_score(model: Model, class_id: int, batch_size: int) -> Score:
    """Return a function that computes the model's probability of `class_id`, with at most `batch_size` inputs in memory at a time."""

    def score(images: Iterable[Bytes]) -> Floats:
        remaining = iter(images)
        scores = []
        while batch := list(islice(remaining, batch_size)):
            scores.append(model.run(np.stack(batch)).scores[:, class_id])
        return np.concatenate(scores, dtype=np.float64)

    return score


def at_input_size(values: Values, width: int, height: int) -> Values:
    """Enlarge a raw map `[h, w]` to the input size with bilinear interpolation.

    A constant map stays constant. A map with values that are not finite becomes 0.
    """
    if not np.isfinite(values).all():
        return np.zeros((height, width), dtype=np.float32)
    if values.min() == values.max():
        return np.full((height, width), values.flat[0], dtype=np.float32)
    return enlarge(np.ascontiguousarray(values, dtype=np.float32), width, height)


def ranking(values: Values) -> Indices:
    """Return the flat indices of a map `[H, W]` in order of descending value. Ties stay in row-major order."""
    return np.argsort(-values.ravel(), kind="stable")


def replace_pixels(image: Bytes, positions: Indices, source: Bytes) -> Bytes:
    """Return a copy of `image` with the pixels at `positions` replaced from `source`.

    `source` is either an image of the same shape or one colour `[3]`.
    """
    changed = image.reshape(-1, 3).copy()
    changed[positions] = source if source.ndim == 1 else source.reshape(-1, 3)[positions]
    return changed.reshape(image.shape)


def pixel_counts(pixels: int, steps: int) -> list[int]:
    """Return the cumulative pixel counts after 0, 1, ..., `steps` of `steps` equal fractions."""
    return [round(pixels * step / steps) for step in range(steps + 1)]


def round_to_bytes(image: npt.NDArray[np.floating]) -> Bytes:
    """Round an image to 8 bits, the input type of a served model."""
    return np.asarray(np.clip(np.rint(image), 0, 255), dtype=np.uint8)
