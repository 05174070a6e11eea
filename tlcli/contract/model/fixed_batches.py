"""Execution of a graph in batches of a few fixed sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tlcli.contract.model.description import IMAGES


class Session(Protocol):
    """The part of ONNX Runtime's session that a run needs."""

    def run(self, output_names: Sequence[str], input_feed: dict[str, Any], run_options: Any = None) -> Sequence[npt.NDArray[Any]]:
        """Compute the named outputs."""


class FixedBatches:
    """Sessions of one graph, each of which runs batches of one size.

    ONNX Runtime plans a convolution again whenever its input's shape differs from the previous run's (cuDNN 9, since ONNX Runtime 1.20):
    0.2 to 1 s for a network. A session whose batches always have the same size plans once. Smaller batches are padded to the next size,
    larger batches are split into pieces of the largest size.
    """

    def __init__(self, sessions: Mapping[int, Session]) -> None:
        """sessions: batch size to session."""
        self._sessions = dict(sorted(sessions.items()))

    def run(self, output_names: Sequence[str], input_feed: dict[str, Any], run_options: Any = None) -> list[npt.NDArray[Any]]:
        """Pad the batch, run it, and remove the padding from the outputs.

        Args:
            output_names: outputs to compute; their first axis is the batch.
            input_feed: inputs by name. `images` gives the batch size n. Inputs of n rows are padded; inputs of one row apply to all images.
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
    """Return the inputs of some of the images; an input with one row applies to all images."""
    return {name: values[start:stop] if len(values) == count else values for name, values in feed.items()}


def _padded(values: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Repeat the last row up to `size` rows."""
    missing = size - len(values)
    return np.concatenate([values, np.repeat(values[-1:], missing, axis=0)]) if missing else values
