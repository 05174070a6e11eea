"""Spatial values of a foreign graph, which maps can explain, and the choice of a default among them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass

from tlcli.contract.errors import ExportError
from tlcli.exports.onnx_source.classifier import find_value
from tlcli.exports.onnx_source.graph.live_values import live_values
from tlcli.exports.onnx_source.graph.observed_graph import ObservedGraph
from tlcli.exports.onnx_source.graph.source_file import shown
from tlcli.exports.onnx_source.locality import LocalityCheck
from tlcli.exports.onnx_source.value_layouts import ValueLayouts

_MOST_BRANCHES_TRIED = 3
"""Number of sets of branches whose order of positions is verified before a layer in front of the branches is chosen."""


@dataclass(frozen=True)
class SpatialValue:
    """A value with one vector of channels at each position of an image.

    name: name of the value.
    channels, height, width: sizes.
    channels_last: True for `[N, h, w, c]`, False for `[N, c, h, w]`.
    operator: operator that computes it.
    prefix: for tokens `[N, prefix + h * w, c]`, the number of those without a position; None for a value of four axes.
    tokens: for a map that `token_map` took out of tokens, the value of the tokens behind it.
    """

    name: str
    channels: int
    height: int
    width: int
    channels_last: bool
    operator: str
    prefix: int | None = None
    tokens: str = ""


class SpatialValues:
    """Spatial values of a graph between the images and the logits."""

    def __init__(self, graph: ObservedGraph, logits: str, channels_last: bool, where: str) -> None:
        """Find the layout of each value.

        Args:
            graph: observed graph.
            logits: name of the logits.
            channels_last: True if the input is `[N, H, W, 3]`.
            where: name of the file for messages.
        """
        self._graph = graph
        self._where = where
        self._path = [graph.nodes[index] for index in sorted(graph.ancestors(logits))]
        self._layouts = ValueLayouts(graph, self._path, channels_last)
        self._check = LocalityCheck(graph, logits, channels_last)

    def __call__(self) -> list[SpatialValue]:
        """Return all spatial values, in the order in which they are computed. Layouts that only the shape suggests are not verified."""
        reached = self._graph.dependents([self._graph.input])
        names = (name for node in self._path for name in node.output if name in reached)
        return [value for name in names if (value := self._spatial(name)) is not None]

    def find(self, name: str) -> SpatialValue:
        """Return the spatial value of a value or node that the user named.

        Raises:
            SettingsError: there is no value of this name.
            ExportError: it is not spatial, or the logits do not depend on its positions.
        """
        value = find_value(self._graph.model.graph, name, "--cam-layer")
        where = f"{self._where}: --cam-layer {name}:"
        spatial = self._spatial(value)
        if spatial is None:
            extent = self._graph.extents.get(value)
            shape = "no float32 tensor" if extent is None else f"[N, {', '.join(map(str, extent.dims[1:]))}]"
            raise ExportError(
                f"{where} has the shape {shape}, without a height and a width: choose a value [N, c, h, w], [N, h, w, c] or [N, h * w, c]"
                " (--list-cam-layers lists them)"
            )
        if not self._is_local(value):
            raise ExportError(
                f"{where} its positions do not follow those of the image, as in windows or attention weights: choose another layer"
            )
        if spatial.prefix is not None and self._in_path(value) and not self._has_influence(value):
            raise ExportError(
                f"{where} the logits do not depend on its patches, so its maps would be empty: choose an earlier layer, such as"
                f" {' or '.join(shown(other.name) for other in self.default())}"
            )
        return spatial

    def is_explainable(self, value: SpatialValue) -> bool:
        """Return True if a spatial value is in the order of the image, and influences the logits."""
        return self._is_suitable(value.name)

    def default(self) -> tuple[SpatialValue, ...]:
        """Return the last spatial value that all paths from the images to the logits pass, and whose positions influence the logits.

        Behind the last attention of a vision transformer, only the class token reaches the logits. Its layer is that attention's input.
        In a network of several branches, such as CrossViT, all paths pass several values together: the last map of each branch.

        Raises:
            ExportError: there is no such value.
        """
        cuts = [name for name in self._cuts() if self._spatial(name) is not None]
        cuts = [name for name in cuts if not self._is_projection(name)] or cuts
        last = next((name for name in reversed(cuts) if self._is_suitable(name)), None)
        names = self._last_branches(last)
        if not names and last is None:
            raise ExportError(
                f"{self._where}: no value with a height and a width lies on all paths to the logits:"
                " name a layer with --cam-layer (--list-cam-layers lists them), or export it without maps (--cam none)"
            )
        if not names and last is not None:
            names = (self._last_normalised(last) if last != cuts[-1] else last,)
        values = (self._spatial(name) for name in names)
        return tuple(value for value in values if value is not None)

    def _last_branches(self, after: str | None) -> tuple[str, ...]:
        """Return the last values behind `after` that together all paths pass, and that are maps of different sizes. Empty without any.

        Values before one with influence have influence, too, so the last ones are found by bisection.
        """
        branches: list[tuple[str, ...]] = []
        place = {name: index for index, node in enumerate(self._path) for name in node.output}
        for node, live in live_values(self._graph, self._path):
            if after in node.output:
                branches.clear()
            maps = [value for name in live if (value := self._spatial(name)) is not None]
            if len(live) > 1 and len({(value.height, value.width) for value in maps}) == len(live):
                branches.append(tuple(sorted(live, key=lambda name: place[name])))
        count = bisect_left(branches, True, key=lambda names: not all(self._has_influence(name) for name in names))
        nearest = reversed(branches[max(0, count - _MOST_BRANCHES_TRIED) : count])
        return next((names for names in nearest if all(self._is_local(name) for name in names)), ())

    def _is_suitable(self, name: str) -> bool:
        """Return True if the layout of a value is right, and its map influences the logits. Only guessed layouts are checked."""
        layout = self._layouts.layout(name)
        return layout is not None and (layout.certain or (self._has_influence(name) and self._is_local(name)))

    def _is_local(self, name: str) -> bool:
        layout = self._layouts.layout(name)
        return layout is not None and (layout.certain or self._check.is_local(name, layout))

    def _has_influence(self, name: str) -> bool:
        layout = self._layouts.layout(name)
        return layout is not None and self._check.has_influence(name, layout)

    def _is_projection(self, name: str) -> bool:
        """Return True for tokens that a linear layer has just computed, such as the keys and values of an attention."""
        node = self._graph.maker(name)
        layout = self._layouts.layout(name)
        if node is None or layout is None or layout.kind != "tokens":
            return False
        computed = [value for value in node.input if value not in self._graph.constants]
        if node.op_type == "Add" and len(computed) == 1:
            return self._is_projection(computed[0])
        return node.op_type == "MatMul" and len(computed) == 1

    def _in_path(self, name: str) -> bool:
        return any(name in node.output for node in self._path)

    def _last_normalised(self, name: str) -> str:
        """Return the last value that follows a residual stream before the attention which is the last to read its patches.

        The sum behind that attention takes the stream, too, but the patches in that sum reach no logit, so this use does not count.
        """
        extents = self._graph.extents
        unread = [
            (index, name)
            for index, node in enumerate(self._path)
            if name in node.input and extents.get(node.output[0]) == extents[name] and not self._has_influence(node.output[0])
        ]
        later = self._cuts(unread)
        later = [value for value in later[later.index(name) :] if extents[value] == extents[name]]
        return next((value for value in reversed(later) if self._is_suitable(value)), name)

    def _cuts(self, unread: Collection[tuple[int, str]] = ()) -> list[str]:
        """Return the values that all paths from the input to the logits pass, in order.

        A value is one of them if, right after it is computed, no other value is still needed later.

        Args:
            unread: uses that do not count, as pairs of a node's index and a value.
        """
        states = live_values(self._graph, self._path, unread)
        return [name for node, live in states if len(live) == 1 for name in node.output if name in live]

    def _spatial(self, name: str) -> SpatialValue | None:
        node, layout = self._graph.maker(name), self._layouts.layout(name)
        if node is None or layout is None:
            return None
        channels = self._graph.extents[name].dims[1 if layout.kind == "first" else -1]
        prefix = layout.prefix if layout.kind == "tokens" else None
        return SpatialValue(name, channels, layout.height, layout.width, layout.kind == "last", node.op_type, prefix)
