"""Layout of the values of a graph: which of their axes are the channels, the height and the width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnx import NodeProto, helper

from tlcli.exports.onnx_source.graph.extents import Extent
from tlcli.exports.onnx_source.graph.observed_graph import ObservedGraph

_CHANNELS_FIRST = frozenset(
    {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "BatchNormalization", "InstanceNormalization", "GlobalAveragePool", "GlobalMaxPool"}
)
"""Operators whose images are always channels first."""
_LAST, _FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
"""Permutations to channels last and to channels first."""
_MOST_PREFIX_TOKENS = 8
"""Largest number of tokens without a position. DINOv2 and DINOv3 have up to five: a class token and four registers."""
_MOST_MERGED = 4
"""Largest factor by which one reshape makes a map smaller, as the merging of patches does."""


@dataclass(frozen=True)
class Layout:
    """Position of a map in a value.

    kind: `first` for `[N, c, h, w]`, `last` for `[N, h, w, c]`, and `tokens` for `[N, prefix + h * w, c]`.
    height, width: size of the map.
    prefix: number of tokens without a position, before the others.
    certain: False if only the shape suggests it, so that it has to be verified on images.
    """

    kind: str
    height: int
    width: int
    prefix: int = 0
    certain: bool = True


class ValueLayouts:
    """Layouts of the values between the images and the logits."""

    def __init__(self, graph: ObservedGraph, path: Sequence[NodeProto], channels_last: bool) -> None:
        """Follow the layout of the images through the graph.

        Args:
            graph: observed graph.
            path: nodes between the images and the logits, in topological order.
            channels_last: True if the input is `[N, H, W, 3]`.
        """
        self._extents = graph.extents
        self._constants = graph.constants
        self._last: dict[str, bool] = {}
        self._guessed: set[str] = set()
        self._grids: list[tuple[int, int]] = []
        self._add(graph.input, channels_last)
        for node in path:
            self._forward(node)
        for node in reversed(path):
            self._backward(node)

    def layout(self, name: str) -> Layout | None:
        """Return the layout of a value; None if it holds no map, once per image."""
        extent = self._extents.get(name)
        if extent is None or extent.batch != 0 or extent.dims[0] != 1:
            return None
        if extent.rank == 3:
            return self._tokens(extent)
        last = self._last.get(name, self._guess(extent)) if extent.rank == 4 else None
        if last is None:
            return None
        height, width = extent.dims[1:3] if last else extent.dims[2:4]
        certain = name in self._last and name not in self._guessed
        return Layout("last" if last else "first", height, width, certain=certain) if height * width > 1 else None

    def _tokens(self, extent: Extent) -> Layout | None:
        """Return the layout of tokens whose number is that of the positions of some earlier map, and of prefix tokens."""
        count = extent.dims[1]
        fitting = [(height, width) for height, width in self._grids if 0 <= count - height * width <= _MOST_PREFIX_TOKENS]
        if not fitting or extent.dims[2] < 2:
            return None
        height, width = max(reversed(fitting), key=lambda grid: grid[0] * grid[1])
        return Layout("tokens", height, width, count - height * width, certain=False)

    def _forward(self, node: NodeProto) -> None:
        known = [name for name in node.input if name in self._last]
        guessed = bool(known) and self._guessed.issuperset(known)
        for name in node.output:
            extent = self._extents.get(name)
            if extent is None or extent.rank != 4:
                continue
            if node.op_type in _CHANNELS_FIRST and node.domain in ("", "ai.onnx"):
                self._add(name, False)
            elif node.op_type == "Transpose":
                if (perm := attribute(node, "perm", [3, 2, 1, 0])) in (_LAST, _FIRST):
                    self._add(name, perm == _LAST, guessed or not known)
            elif node.op_type == "Reshape":
                if (last := self._merged(extent)) is not None:
                    self._add(name, last, guessed=True)
            elif node.op_type == "MatMul":
                if known[:1] == [node.input[0]] and self._last[known[0]] and node.input[1] in self._constants:
                    self._add(name, True, guessed)
            elif len({self._last[source] for source in known}) == 1:
                self._add(name, self._last[known[0]], guessed)

    def _add(self, name: str, last: bool, guessed: bool = False) -> None:
        self._last[name] = last
        dims = self._extents[name].dims
        grid = dims[1:3] if last else dims[2:4]
        if grid not in self._grids and grid[0] * grid[1] > 1:
            self._grids.append((grid[0], grid[1]))
        if guessed:
            self._guessed.add(name)

    def _merged(self, extent: Extent) -> bool | None:
        """Guess the layout of a reshaped value: it has the size of an earlier map, or a fraction of it."""
        last, first = (
            [factor for factor in range(1, _MOST_MERGED + 1) if (size[0] * factor, size[1] * factor) in self._grids]
            for size in (extent.dims[1:3], extent.dims[2:4])
        )
        if not last or not first:
            return True if last else False if first else None
        return None if last[0] == first[0] else last[0] < first[0]

    def _guess(self, extent: Extent) -> bool | None:
        """Guess the layout of a value that is not followed: it has the size of an earlier map. If two sizes fit, two equal ones win."""
        first, last = (tuple(extent.dims[start : start + 2]) in self._grids for start in (2, 1))
        return extent.dims[1] == extent.dims[2] != extent.dims[3] if first and last else last if first or last else None

    def _backward(self, node: NodeProto) -> None:
        """Learn the layout of a node's input from what the node requires."""
        for name in node.input[:1]:
            if name in self._last or name not in self._extents or self._extents[name].rank != 4:
                continue
            if node.op_type in _CHANNELS_FIRST:
                self._add(name, False)
            elif node.op_type == "Transpose" and (perm := attribute(node, "perm", [])) in (_LAST, _FIRST):
                self._add(name, perm == _FIRST)
            elif node.op_type.startswith("Reduce") and len(node.input) > 1 and node.input[1] in self._constants:
                axes = sorted(int(axis) % 4 for axis in self._constants[node.input[1]].ravel())
                if axes in ([1, 2], [2, 3]):
                    self._add(name, axes == [1, 2])


def attribute(node: NodeProto, name: str, default: list[int]) -> list[int]:
    """Return an attribute of integers."""
    values: Any = next((helper.get_attribute_value(value) for value in node.attribute if value.name == name), default)
    return list(values)
