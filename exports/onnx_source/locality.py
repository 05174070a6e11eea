"""Checks of a layer on images: its positions are those of the image, and the logits depend on them.

As in `tlcli.training.models.locality`, which needs PyTorch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import ExportError
from tlcli.exports.onnx_source.graph.graph_part import Tail, values_of
from tlcli.exports.onnx_source.graph.observed_graph import ObservedGraph
from tlcli.exports.onnx_source.value_layouts import Layout

_PLACES = ((0.15, 0.2), (0.2, 0.85), (0.8, 0.15), (0.85, 0.8), (0.5, 0.5))
_BLOCK = 0.2
_ENOUGH = 4

Array = npt.NDArray[Any]


class LocalityCheck:
    """Noise images, five of which differ from the first in one block each."""

    def __init__(self, graph: ObservedGraph, logits: str, channels_last: bool) -> None:
        """Store the graph.

        Args:
            graph: observed graph.
            logits: name of the logits.
            channels_last: True if the input is `[N, H, W, 3]`.
        """
        self._graph, self._logits = graph, logits
        base, other = graph.noise(2)
        axes = (0, 1) if channels_last else (1, 2)
        height, width = (base.shape[axis] for axis in axes)
        self._images = np.repeat(base[None], 1 + len(_PLACES), 0)
        for image, (row, column) in zip(self._images[1:], _PLACES, strict=True):
            own = [slice(None)] * 3
            own[axes[0]], own[axes[1]] = _block(row, height), _block(column, width)
            image[tuple(own)] = other[tuple(own)]

    def is_local(self, name: str, layout: Layout) -> bool:
        """Return True if the block that changes a position of the value most is the one at that place of the image."""
        maps = to_map(values_of(self._graph, [name], self._images)[name], layout).astype(np.float64)
        changes = np.abs(maps[1:] - maps[:1]).mean(1)
        changes /= np.maximum(changes.mean((-2, -1), keepdims=True), np.finfo(np.float32).tiny)
        found = 0
        for number, (row, column) in enumerate(_PLACES):
            at_place = changes[:, int(row * layout.height), int(column * layout.width)]
            found += int(at_place.argmax()) == number and bool(at_place[number] > 0)
        return found >= _ENOUGH

    def has_influence(self, name: str, layout: Layout) -> bool:
        """Return True if the logits change with the map in a value, while its prefix tokens stay. False if the graph has no cut there."""
        try:
            tail = Tail(self._graph, name, self._logits)
        except ExportError:
            return False
        held = values_of(self._graph, [name, *tail.saved], self._images[:1])
        activations = held.pop(name)
        changed = activations.copy()
        values = changed[:, layout.prefix :] if layout.kind == "tokens" else changed
        values += np.random.default_rng(0).standard_normal(values.shape).astype(np.float32) * max(float(values.std()), 1e-6)
        return not np.array_equal(tail(activations, held), tail(changed, held))


def to_map(value: Array, layout: Layout) -> Array:
    """Return the map `[N, c, h, w]` in a value."""
    if layout.kind == "first":
        return value
    if layout.kind == "tokens":
        value = value[:, layout.prefix :].reshape(len(value), layout.height, layout.width, -1)
    return value.transpose(0, 3, 1, 2)


def _block(centre: float, size: int) -> slice:
    half = max(1, round(_BLOCK * size / 2))
    middle = int(centre * size)
    return slice(max(0, middle - half), min(size, middle + half))
