"""Execution of a plain graph, whose inputs are all required and whose shapes may be fixed, through the interface of a flexible graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tlcli.contract.model.description import IMAGES, LOGITS, SCORES, TARGETS, Plain
from tlcli.contract.model.fixed_batches import Session

_FIRST_RANKED = -1
_WITHOUT_CLASSES = (SCORES, LOGITS)
"""Outputs `[N, ...]` without a dimension for the explained classes."""

Values = npt.NDArray[Any]


class PlainSession:
    """Session of a plain graph that takes any number of images and classes, and does not require `targets`."""

    def __init__(self, session: Session, plain: Plain) -> None:
        """Wrap a session.

        Args:
            session: session of the plain graph.
            plain: form of the graph.
        """
        self._session = session
        self._plain = plain

    def run(self, output_names: Sequence[str], input_feed: dict[str, Any], run_options: Any = None) -> list[Values]:
        """Run the graph, several times if its shapes are fixed and smaller than the inputs.

        Args:
            output_names: names of the outputs to return; the graph computes all of them regardless.
            input_feed: `images` `[N, H, W, 3]`, and optionally `targets` `[N or 1, K]`, without which the first-ranked class is explained.
                A graph that explains only that class requires that all targets are -1.
            run_options: ONNX Runtime's run options.
        """
        images = input_feed[IMAGES]
        targets = np.asarray(input_feed.get(TARGETS, [[_FIRST_RANKED]]), dtype=np.int64)
        targets = np.broadcast_to(targets, (len(images), targets.shape[1]))
        size = self._plain.batch or len(images)
        pieces = [
            self._run_rows(output_names, images[start : start + size], targets[start : start + size], run_options)
            for start in range(0, len(images), size)
        ]
        return pieces[0] if len(pieces) == 1 else [np.concatenate(values) for values in zip(*pieces, strict=True)]

    def _run_rows(self, names: Sequence[str], images: Values, targets: Values, options: Any) -> list[Values]:
        """Run at most one batch of images."""
        count, explained = targets.shape
        padded = _padded(images, self._plain.batch or count, 0)
        if self._plain.classes == "top":
            values = self._session.run(names, {IMAGES: padded}, options)
            return [
                _cut(name, part, count, 1).repeat(1 if name in _WITHOUT_CLASSES else explained, 1)
                for name, part in zip(names, values, strict=True)
            ]
        size = self._plain.explained or explained
        pieces = []
        for start in range(0, explained, size):
            some = targets[:, start : start + size]
            feed = {IMAGES: padded, TARGETS: _padded(_padded(some, size, 1), len(padded), 0)}
            values = self._session.run(names, feed, options)
            pieces.append([_cut(name, part, count, some.shape[1]) for name, part in zip(names, values, strict=True)])
        return [
            parts[0] if len(parts) == 1 or name in _WITHOUT_CLASSES else np.concatenate(parts, axis=1)
            for name, parts in zip(names, zip(*pieces, strict=True), strict=True)
        ]


def _padded(values: Values, size: int, axis: int) -> Values:
    """Pad `values` to `size` along an axis by repeating the last entry."""
    missing = size - values.shape[axis]
    if missing == 0:
        return np.ascontiguousarray(values)
    last = np.take(values, [-1], axis)
    return np.concatenate([values, np.repeat(last, missing, axis)], axis)


def _cut(name: str, values: Values, images: int, classes: int) -> Values:
    """Remove the padding from an output."""
    return values[:images] if name in _WITHOUT_CLASSES else values[:images, :classes]
