"""Spatial values of a foreign graph, which maps can explain, and the choice of a default among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import NodeProto, helper

from tlcli.contract.errors import ExportError
from tlcli.exports.onnx_source.classifier import find_value
from tlcli.exports.onnx_source.graph.observed_graph import Extent, ObservedGraph

_CHANNELS_FIRST = frozenset(
    {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "BatchNormalization", "InstanceNormalization", "GlobalAveragePool", "GlobalMaxPool"}
)
"""Operators whose images are always channels first."""


@dataclass(frozen=True)
class SpatialValue:
    """A value with one vector of channels at each position of an image.

    name: name of the value.
    channels, height, width: sizes.
    channels_last: True for `[N, h, w, c]`, False for `[N, c, h, w]`.
    operator: operator that computes it.
    """

    name: str
    channels: int
    height: int
    width: int
    channels_last: bool
    operator: str


class SpatialValues:
    """Spatial values of a graph between the images and the logits."""

    def __init__(self, graph: ObservedGraph, logits: str, channels_last: bool, where: str) -> None:
        """Find the layout of each value of four axes.

        Args:
            graph: observed graph.
            logits: name of the logits.
            channels_last: True if the input is `[N, H, W, 3]`.
            where: name of the file for messages.
        """
        self._graph = graph
        self._where = where
        self._path = [graph.nodes[index] for index in sorted(graph.ancestors(logits))]
        self._layout = self._layouts(channels_last)

    def __call__(self) -> list[SpatialValue]:
        """Return all spatial values, in the order in which they are computed."""
        reached = self._graph.dependents([self._graph.input])
        names = (name for node in self._path for name in node.output if name in reached)
        return [value for name in names if (value := self._spatial(name)) is not None]

    def find(self, name: str) -> SpatialValue:
        """Return the spatial value of a value or node that the user named.

        Raises:
            SettingsError: there is no value of this name.
            ExportError: it is not spatial, or the logits do not depend on it.
        """
        value = find_value(self._graph.model.graph, name, "--cam-layer")
        spatial = self._spatial(value)
        if spatial is not None:
            return spatial
        extent = self._graph.extents.get(value)
        shape = "no float32 tensor" if extent is None else f"[N, {', '.join(map(str, extent.dims[1:]))}]"
        raise ExportError(f"{self._where}: --cam-layer {name}: is {shape}, without a height and a width: choose a value [N, c, h, w]")

    def default(self) -> SpatialValue:
        """Return the last spatial value that all paths from the images to the logits pass.

        Raises:
            ExportError: there is none.
        """
        spatial = {value.name: value for value in self()}
        last = None
        for name in self._cuts():
            last = spatial.get(name, last)
        if last is None:
            raise ExportError(
                f"{self._where}: no value with a height and a width lies on all paths to the logits, as in a transformer:"
                " name a layer with --cam-layer, or export it without maps (--cam none)"
            )
        return last

    def _cuts(self) -> list[str]:
        """Return the values that all paths from the input to the logits pass, in order.

        A value is one of them if, right after it is computed, no other value is still needed later.
        """
        reached = self._graph.dependents([self._graph.input])
        remaining: dict[str, int] = {}
        path = [node for node in self._path if not reached.isdisjoint(node.output)]
        for node in path:
            for name in set(node.input) & reached:
                remaining[name] = remaining.get(name, 0) + 1
        live = {self._graph.input}
        cuts: list[str] = []
        for node in path:
            for name in set(node.input) & live:
                remaining[name] -= 1
                if not remaining[name]:
                    live.remove(name)
            live |= {name for name in node.output if remaining.get(name)}
            if len(live) == 1:
                cuts.extend(name for name in node.output if name in live)
        return cuts

    def _spatial(self, name: str) -> SpatialValue | None:
        extent = self._graph.extents.get(name)
        node = self._graph.maker(name)
        if node is None or extent is None or extent.rank != 4 or extent.batch != 0 or extent.dims[0] != 1:
            return None
        last = self._layout.get(name, _guess(extent))
        height, width = extent.dims[1:3] if last else extent.dims[2:4]
        if height * width <= 1:
            return None
        return SpatialValue(name, extent.dims[3] if last else extent.dims[1], height, width, last, node.op_type)

    def _layouts(self, channels_last: bool) -> dict[str, bool]:
        """Return, for values of known layout, True for channels last."""
        extents = self._graph.extents
        layout = {self._graph.input: channels_last}
        for node in self._path:
            known = [layout[name] for name in node.input if name in layout]
            for name in node.output:
                extent = extents.get(name)
                if extent is None or extent.rank != 4:
                    continue
                if node.op_type in _CHANNELS_FIRST and node.domain in ("", "ai.onnx"):
                    layout[name] = False
                elif node.op_type == "Transpose":
                    perm = _attribute(node, "perm", [3, 2, 1, 0])
                    if (known and perm in ([0, 2, 3, 1], [0, 3, 1, 2])) or perm in ([0, 2, 3, 1], [0, 3, 1, 2]):
                        layout[name] = perm == [0, 2, 3, 1]
                elif node.op_type not in ("Reshape", "MatMul") and len(set(known)) == 1:
                    layout[name] = known[0]
        for node in reversed(self._path):
            for name in node.input[:1]:
                if name in layout or name not in extents or extents[name].rank != 4:
                    continue
                if node.op_type in _CHANNELS_FIRST:
                    layout[name] = False
                elif node.op_type == "Transpose" and _attribute(node, "perm", []) in ([0, 2, 3, 1], [0, 3, 1, 2]):
                    layout[name] = _attribute(node, "perm", []) == [0, 3, 1, 2]
                elif node.op_type.startswith("Reduce") and len(node.input) > 1 and node.input[1] in self._graph.constants:
                    axes = sorted(int(axis) % 4 for axis in self._graph.constants[node.input[1]].ravel())
                    if axes in ([1, 2], [2, 3]):
                        layout[name] = axes == [1, 2]
        return layout


def _attribute(node: NodeProto, name: str, default: list[int]) -> list[int]:
    for attribute in node.attribute:
        if attribute.name == name:
            return list(helper.get_attribute_value(attribute))
    return default


def _guess(extent: Extent) -> bool:
    """Guess the layout of a value: the two equal sizes are the height and the width."""
    _, first, second, third = extent.dims
    return first == second != third


def layer_nodes(graph: ObservedGraph, layers: Sequence[str], end: str) -> tuple[set[str], list[NodeProto]]:
    """Return the values that depend on the layers, and the nodes between the layers and the value `end`, in order."""
    dependents = graph.dependents(layers)
    needed = graph.ancestors(end)
    nodes = [node for index, node in enumerate(graph.nodes) if index in needed and not dependents.isdisjoint(node.input)]
    return dependents, nodes
