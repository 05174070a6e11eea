"""Execution of a graph with a few fixed batch sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tlcli.contract.model.description import IMAGES


class Session(Protocol):
    """Interface of ONNX Runtime's `InferenceSession` that running a graph requires."""

    def run(self, output_names: Sequence[str], input_feed: dict[str, Any], run_options: Any = None) -> Sequence[npt.NDArray[Any]]:
        """Compute the named outputs from inputs by name."""


class FixedBatches:
    """Several sessions of one graph, each for a fixed batch size.

    ONNX Runtime plans a convolution again whenever its input shape differs from that of the previous run (cuDNN 9, since ONNX Runtime
    1.20), which takes 0.2 to 1 s for a network. A session whose batches always have the same size plans only once. Batches are padded to
    the next larger size, and batches above the largest size are split.
    """

    def __init__(self, sessions: Mapping[int, Session]) -> None:
        """Store the sessions, given as a mapping from batch size to session."""
        self._sessions = dict(sorted(sessions.items()))

    def run(self, output_names: Sequence[str], input_feed: dict[str, Any], run_options: Any = None) -> list[npt.NDArray[Any]]:
        """Pad the batch, run it, and remove the padding from the outputs.

        Args:
            output_names: names of the outputs to compute; their first dimension must be the batch.
            input_feed: inputs by name. The length of `images` is the batch size n. Inputs with n rows are padded; inputs with one row
                apply to all images.
            run_options: ONNX Runtime's run options.
        """
        count, largest = len(input_feed[IMAGES]), max(self._sessions)
        pieces = [
            self._run_piece(output_names, _rows(input_feed, count, start, start + largest), run_options)
            for start in range(0, count, largest)
        ]
        return pieces[0] if len(pieces) == 1 else [np.concatenate(values) for values in zip(*pieces, strict=True)]

    def _run_piece(self, output_names: Sequence[str], feed: dict[str, Any], run_options: Any) -> list[npt.NDArray[Any]]:
        count = len(feed[IMAGES])
        size = next(size for size in self._sessions if size >= count)
        padded = (
            {name: _padded(values, size) if len(values) == count else values for name, values in feed.items()} if size > count else feed
        )
        return [values[:count] for values in self._sessions[size].run(output_names, padded, run_options)]


def _rows(feed: dict[str, Any], count: int, start: int, stop: int) -> dict[str, Any]:
    """Return the inputs for the images from `start` to `stop`. Inputs with one row apply to all images and are not sliced."""
    return {name: values[start:stop] if len(values) == count else values for name, values in feed.items()}


def _padded(values: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Pad `values` to `size` rows by repeating the last row."""
    missing = size - len(values)
    return np.concatenate([values, np.repeat(values[-1:], missing, axis=0)]) if missing else values
