"""Runs of a graph in batches of a few fixed sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from contract.description import IMAGES


class Session(Protocol):
    """ONNX Runtime's session, as far as a run needs it."""

    def run(self, output_names: Sequence[str], input_feed: dict[str, Any], run_options: Any = None) -> Sequence[npt.NDArray[Any]]:
        """Compute the named outputs."""


class FixedBatches:
    """Sessions of one graph, each of which only sees batches of one size.

    ONNX Runtime plans a convolution again whenever its input's shape differs from the previous run's (cuDNN 9, since ONNX Runtime 1.20):
    0.2 to 1 s for a network. A session whose batches always have the same size plans once. Smaller batches are padded to the next size.
    """

    def __init__(self, sessions: Mapping[int, Session]) -> None:
        """sessions: batch size to session; a batch larger than all of them runs unpadded in the largest."""
        self._sessions = dict(sorted(sessions.items()))

    def run(self, output_names: Sequence[str], input_feed: dict[str, Any], run_options: Any = None) -> list[npt.NDArray[Any]]:
        """Pad the batch, run it, and cut the outputs back to the images that came.

        Args:
            output_names: outputs to compute; their first axis is the batch.
            input_feed: inputs by name. `images` gives the batch size n; inputs of n rows are padded, inputs of one row hold for all.
            run_options: ONNX Runtime's, passed on.
        """
        count = len(input_feed[IMAGES])
        size = next((size for size in self._sessions if size >= count), None)
        if size is None:
            return list(self._sessions[max(self._sessions)].run(output_names, input_feed, run_options))
        feed = {name: _padded(values, size) if name == IMAGES or len(values) > 1 else values for name, values in input_feed.items()}
        return [values[:count] for values in self._sessions[size].run(output_names, feed, run_options)]


def _padded(values: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Repeat the last row up to `size` rows."""
    missing = size - len(values)
    return np.concatenate([values, np.repeat(values[-1:], missing, axis=0)]) if missing else values
