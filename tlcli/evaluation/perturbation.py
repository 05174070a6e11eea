"""Asking a model about changed images: what the measures of faithfulness share."""

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
"""Inputs uint8 `[H, W, 3]`, as many as come, to the probability of one class for each, `[n]`."""


def class_score(model: Model, class_id: int, batch_size: int) -> Score:
    """The model's probability of `class_id`; at most `batch_size` inputs are held at a time."""

    def score(images: Iterable[Bytes]) -> Floats:
        waiting = iter(images)
        parts = []
        while batch := list(islice(waiting, batch_size)):
            parts.append(model.run(np.stack(batch)).scores[:, class_id])
        return np.concatenate(parts, dtype=np.float64)

    return score


def at_input_size(values: Values, width: int, height: int) -> Values:
    """A raw map `[h, w]`, bilinear, at the input's size: constant if it is, and 0 if a value of it is not finite."""
    if not np.isfinite(values).all():
        return np.zeros((height, width), dtype=np.float32)
    if values.min() == values.max():
        return np.full((height, width), values.flat[0], dtype=np.float32)
    return enlarge(np.ascontiguousarray(values, dtype=np.float32), width, height)


def ranking(values: Values) -> Indices:
    """The positions of a map `[H, W]`, row by row from 0, from the largest value to the smallest; equal ones as they are read."""
    return np.argsort(-values.ravel(), kind="stable")


def replaced(image: Bytes, positions: Indices, by: Bytes) -> Bytes:
    """A copy of `image` with the pixels at `positions` taken from `by`, which has its shape, or is one colour `[3]`."""
    changed = image.reshape(-1, 3).copy()
    changed[positions] = by if by.ndim == 1 else by.reshape(-1, 3)[positions]
    return changed.reshape(image.shape)


def counts(pixels: int, steps: int) -> list[int]:
    """How many of `pixels` the first 0, 1, ..., `steps` of `steps` equal shares are."""
    return [round(pixels * step / steps) for step in range(steps + 1)]


def rounded(image: npt.NDArray[np.floating]) -> Bytes:
    """To the nearest of 8 bits, which is what a served model takes."""
    return np.asarray(np.clip(np.rint(image), 0, 255), dtype=np.uint8)
