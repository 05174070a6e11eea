"""Backward pass over the nodes of an observed graph. Each operator has a rule that writes the nodes of its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, helper

from tlcli.exports.onnx_source.gradients.class_rows import ClassRows, Factor
from tlcli.exports.onnx_source.graph.extents import Extent
from tlcli.exports.onnx_source.graph.node_writer import NodeWriter
from tlcli.exports.onnx_source.graph.observed_graph import ObservedGraph

_RECURRENT = "a recurrent layer"
_UNKNOWN_SIZE = "whose output has another size for each image"
_REASONS = {
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _RECURRENT),
    **dict.fromkeys(("NonZero", "Compress", "Unique", "NonMaxSuppression"), _UNKNOWN_SIZE),
    **dict.fromkeys(("If", "Loop", "Scan"), "control flow that depends on the image"),
    "GridSample": "a warp by positions",
}
"""Descriptions of operators without a rule whose names do not explain why they have none."""


class UnsupportedOperatorError(Exception):
    """Raised for an operator after the layer that has no gradient rule, or whose form its rule does not support.

    node: the operator.
    """

    def __init__(self, node: NodeProto, reason: str = "", form: str = "") -> None:
        reason = f" with {form}" if form else f", {reason}" if reason else ""
        super().__init__(f"{node.op_type}{reason}")
        self.node = node


class Step:
    """Node of the backward pass, as passed to its gradient rule.

    node: node of the forward pass.
    attributes: its attributes.
    gradient: gradient with respect to its first output; see `class_rows`.
    extent: extent of that output.
    """

    def __init__(self, flow: GradientFlow, node: NodeProto, number: int = 0) -> None:
        self.node = node
        self.attributes: dict[str, Any] = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        self.flow = flow
        self.rows = flow.rows
        self.writer = flow.writer
        self.number = number
        self.output = node.output[number]
        extent = flow.graph.extents.get(self.output)
        if extent is None:
            raise NotImplementedError("an output that mixes images")
        self.extent = extent
        self.gradient = flow.gradient_of(self.output)

    def input(self, index: int) -> str | None:
        """Return the name of an input; None if it is omitted."""
        return self.node.input[index] if index < len(self.node.input) and self.node.input[index] else None

    def extent_of(self, index: int = 0) -> Extent:
        """Return the extent of an input that depends on the images.

        Raises:
            NotImplementedError: the input has no batch axis.
        """
        extent = self.flow.graph.extents.get(self.node.input[index])
        if extent is None:
            raise NotImplementedError(f"the input {self.node.input[index]}, which has no batch axis")
        return extent

    def needs(self, index: int) -> bool:
        """Return True if the gradient with respect to an input is needed."""
        return self.input(index) is not None and self.node.input[index] in self.flow.dependents

    def constant(self, index: int) -> npt.NDArray[Any] | None:
        """Return the value of a constant input; None if the input is omitted or depends on the images."""
        return self.flow.graph.constants.get(self.node.input[index]) if self.input(index) is not None else None

    def required(self, index: int, meaning: str) -> npt.NDArray[Any]:
        """Return the value of an input that must be constant.

        Raises:
            NotImplementedError: it is not.
        """
        value = self.constant(index)
        if value is None:
            raise NotImplementedError(f"{meaning} that depends on the image")
        return value

    def factor(self, index: int) -> Factor:
        """Return an input as a factor for a gradient."""
        value = self.constant(index)
        return Factor(self.node.input[index], self.extent_of(index)) if value is None else Factor(value.astype(np.float32))

    def axis(self, default: int, rank: int) -> int:
        """Return the attribute `axis`, counted from the front."""
        axis: int = self.attributes.get("axis", default)
        return axis % rank

    def give(self, index: int, gradient: str) -> None:
        """Add a contribution to the gradient with respect to an input."""
        if self.needs(index):
            self.flow.add(self.node.input[index], gradient)

    def scale(self, index: int, factor: Factor) -> None:
        """Contribute the output's gradient times a factor to an input of the same extent."""
        if self.needs(index):
            self.give(index, self.rows.combine("Mul", self.gradient, self.extent, factor))

    def op(self, operator: str, *inputs: Any, **attributes: Any) -> str:
        """Add a node; see `NodeWriter.op`."""
        return self.writer.op(operator, *inputs, **attributes)


Rule = Callable[[Step], None]


class GradientFlow:
    """Gradients of values, collected from the logits backwards.

    graph: observed graph.
    dependents: values that depend on an explained layer, and whose gradients are therefore needed.
    """

    def __init__(self, graph: ObservedGraph, writer: NodeWriter, rows: ClassRows, dependents: set[str], rules: dict[str, Rule]) -> None:
        self.graph = graph
        self.writer = writer
        self.rows = rows
        self.dependents = dependents
        self._rules = rules
        self._contributions: dict[str, list[str]] = {}

    def add(self, value: str, gradient: str) -> None:
        """Add a contribution to the gradient with respect to a value."""
        self._contributions.setdefault(value, []).append(gradient)

    def gradient_of(self, value: str) -> str:
        """Return the sum of the contributions so far."""
        contributions = self._contributions[value]
        while len(contributions) > 1:
            contributions[:2] = [self.writer.op("Add", *contributions[:2])]
        return contributions[0]

    def has_gradient(self, value: str) -> bool:
        """Return True if the logits depend on the value in a differentiable way."""
        return value in self._contributions

    def pull_back(self, start: str, gradient: str, nodes: Sequence[NodeProto]) -> None:
        """Run the rules from one value backwards.

        Args:
            start: value whose gradient is given.
            gradient: its gradient.
            nodes: nodes between the layers and `start`, in topological order.

        Raises:
            UnsupportedOperatorError: an operator has no rule, or its rule does not support its form.
        """
        self.add(start, gradient)
        for node in reversed(nodes):
            for number, name in enumerate(node.output):
                if name not in self._contributions or self.dependents.isdisjoint(node.input):
                    continue
                rule = self._rules.get(node.op_type) if node.domain in ("", "ai.onnx") else None
                if rule is None:
                    raise UnsupportedOperatorError(node, _REASONS.get(node.op_type, ""))
                try:
                    rule(Step(self, node, number))
                except NotImplementedError as error:
                    raise UnsupportedOperatorError(node, form=str(error)) from error
