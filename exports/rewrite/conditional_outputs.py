"""Conditional outputs, built from ONNX `If` operators, so that outputs that a request omits are not computed.

A runtime computes the entire graph regardless of which outputs a request fetches (ONNX Runtime's `only_execute_path_to_fetches` has no
effect in its released builds). Therefore the graph has an input `wanted`, with one boolean per conditional output.

One `If` encloses all of them, so that a request for scores alone evaluates a single condition:

    always: scores, logits
    If any switch is wanted
        shared: classes, the gradient
        If gradcam or an output computed from it is wanted      (one such `If` per common switch, and per switch that it uses)
        If any other switch is wanted
            If layercam is wanted                               (one such `If` per remaining switch)
            ...
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from tlcli.contract.model.description import WANTED
from tlcli.exports.rewrite.conditional_plan import ConditionalPlan, Switch, plan_conditions
from tlcli.exports.rewrite.graph_edit import (
    add_constant,
    copied,
    defined_by,
    producers,
    rename,
    replace_nodes,
    taken_by,
    upstream_nodes,
)

_ALL, _UNCOMMON = "asked", "seldom"
"""Names of the branch around all switches, and of the branch around the rarely requested ones."""


def make_conditional(
    graph: GraphProto, switches: Sequence[Switch], together: Mapping[str, tuple[int, ...]], shared: Sequence[str] = ()
) -> None:
    """Make outputs of the graph conditional on its new input `wanted`. The graph is modified in place.

    Args:
        graph: graph whose outputs include all switches. It may contain loops and the `If` of `target_choice`. A switch may be computed
            from another one, as maps are from gradients; requesting it then also computes the other.
        switches: conditional outputs, in the order of `wanted`.
        together: int64 outputs that are computed if any switch is requested, mapped to the shapes of the empty tensors that are returned
            otherwise.
        shared: values that several switches use; they are also computed if any switch is requested.
    """
    nodes = list(graph.node)
    names = [switch.name for switch in switches]
    required = [output.name for output in graph.output if output.name not in {*names, *together}]
    _copy_needed_switches(nodes, names, [*required, *together, *shared])
    plan = plan_conditions(nodes, switches, required, [*together, *shared])
    ConditionalOutputs(graph, nodes, switches, together, plan).write()


def _copy_needed_switches(nodes: list[NodeProto], switches: Sequence[str], outputs: Sequence[str]) -> None:
    """Add copies of the switches from which other outputs are computed, because a branch can only return values computed in it."""
    producer, needed = producers(nodes), upstream_nodes(nodes, outputs)
    for name in switches:
        if producer[name] in needed:
            for node in nodes:
                rename(node, {name: f"{name}/made"})
            nodes.append(helper.make_node("Identity", [f"{name}/made"], [name], name=name))


class ConditionalOutputs:
    """Writer that turns a flat graph into the branches of a plan."""

    def __init__(
        self,
        graph: GraphProto,
        nodes: Sequence[NodeProto],
        switches: Sequence[Switch],
        together: Mapping[str, tuple[int, ...]],
        plan: ConditionalPlan,
    ) -> None:
        """Store the graph and the plan. For the arguments not listed here, see `make_conditional`.

        Args:
            nodes: nodes to which the plan's indices refer.
            plan: plan returned by `plan_conditions`.
        """
        self._graph = graph
        self._nodes = nodes
        self._switches = {switch.name: switch for switch in switches}
        self._index = {switch.name: index for index, switch in enumerate(switches)}
        self._together = together
        self._plan = plan
        self._empty_tensors: dict[tuple[int, tuple[int, ...]], str] = {}

    def write(self) -> None:
        """Replace the graph's nodes with the planned scopes, and add the input `wanted` with its default."""
        shapes = {**self._together, **{name: switch.empty for name, switch in self._switches.items()}}
        branch = self._branch_for_all()
        top = _Scope("", {})
        top.copy_in(self._at(self._plan.always))
        top.add("ReduceMax", [WANTED], f"{WANTED}/any", keepdims=0)
        self._add_if(top, _ALL, f"{WANTED}/any", branch, shapes)
        replace_nodes(self._graph, _return_copies((output.name for output in self._graph.output), top.nodes))
        self._graph.input.append(helper.make_tensor_value_info(WANTED, TensorProto.BOOL, [None, len(self._switches)]))
        defaults = np.array([[switch.default for switch in self._switches.values()]])
        self._graph.initializer.append(numpy_helper.from_array(defaults, WANTED))

    def _branch_for_all(self) -> _Scope:
        """Build the branch around all switches, with the shared nodes, the conditions, and one `If` per switch."""
        common = self._plan.in_order(name for name, switch in self._switches.items() if switch.common)
        uncommon = [name for name in self._plan.in_order(self._switches) if name not in common]
        branch = _Scope(_ALL, {})
        branch.copy_in(self._at(self._plan.shared))
        branch.add("ReduceMax", [WANTED, self._constant("rows", [0])], f"{WANTED}/any_row", keepdims=0)
        conditions = [_condition(name) for name in self._switches]
        branch.add_node(helper.make_node("Split", [f"{WANTED}/any_row"], conditions, axis=0, num_outputs=len(conditions)))
        for name in common:
            self._add_switch(branch, name)
        if uncommon:
            inner = _Scope(_UNCOMMON, branch.visible)
            for name in uncommon:
                self._add_switch(inner, name)
            shapes = {name: self._switches[name].empty for name in uncommon}
            self._add_if(branch, _UNCOMMON, self._any_of(branch, _UNCOMMON, uncommon), inner, shapes)
        return branch

    def _add_switch(self, scope: _Scope, name: str) -> None:
        """Add the `If` that computes a switch if the switch itself or another switch that uses it is requested."""
        branch = _Scope(name, scope.visible)
        branch.copy_in(self._at(self._plan.own[name]))
        condition = self._any_of(scope, name, [name, *self._plan.users(name)])
        self._add_if(scope, name, condition, branch, {name: self._switches[name].empty})

    def _any_of(self, scope: _Scope, place: str, names: Sequence[str]) -> str:
        """Add nodes that compute whether any of the given switches is requested, and return the name of the result."""
        if len(names) == 1:
            return _condition(names[0])
        indices = self._constant(f"numbers/{place}", [self._index[name] for name in names])
        scope.add("Gather", [f"{WANTED}/any_row", indices], f"{WANTED}/{place}/each", axis=0)
        scope.add("ReduceMax", [f"{WANTED}/{place}/each"], f"{WANTED}/{place}/any", keepdims=0)
        return f"{WANTED}/{place}/any"

    def _add_if(self, scope: _Scope, place: str, condition: str, branch: _Scope, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Add an `If` that returns the values named in `shapes` from `branch` if the condition holds, and empty tensors otherwise."""
        types = {value: TensorProto.INT64 if value in self._together else TensorProto.FLOAT for value in shapes}
        computed = {value: branch.visible[value] for value in shapes}
        empty = {value: f"{place}/none/{value}" for value in shapes}

        def returned(names: Mapping[str, str]) -> list[ValueInfoProto]:
            return [helper.make_tensor_value_info(names[value], types[value], [None] * len(shape)) for value, shape in shapes.items()]

        nodes_for_empty = [
            helper.make_node("Identity", [self._empty_tensor(types[value], shape)], [empty[value]], name=empty[value])
            for value, shape in shapes.items()
        ]
        scope.add_node(
            helper.make_node(
                "If",
                [condition],
                list(shapes),
                name=f"if/{place}",
                then_branch=helper.make_graph(_return_copies(computed.values(), branch.nodes), f"{place}/then", [], returned(computed)),
                else_branch=helper.make_graph(nodes_for_empty, f"{place}/else", [], returned(empty)),
            )
        )

    def _at(self, indices: Iterable[int]) -> list[NodeProto]:
        """Return the nodes at the given indices, in graph order."""
        return [self._nodes[index] for index in sorted(indices)]

    def _constant(self, name: str, value: int | Sequence[int]) -> str:
        return add_constant(self._graph, f"{WANTED}/{name}", value)

    def _empty_tensor(self, kind: int, shape: tuple[int, ...]) -> str:
        """Return the name of an empty tensor with this type and shape.

        It is stored once for the entire graph, because a constant in each branch would take memory in each.
        """
        if (kind, shape) not in self._empty_tensors:
            name = f"{WANTED}/empty/{len(self._empty_tensors)}"
            values = np.zeros(shape, dtype=helper.tensor_dtype_to_np_dtype(kind))
            self._empty_tensors[kind, shape] = add_constant(self._graph, name, values)
        return self._empty_tensors[kind, shape]


class _Scope:
    """Nodes of one scope. Values defined in a branch get a prefix, because no name may occur in two scopes.

    visible: mapping from the names of values in the flat graph to their names in this scope.
    """

    def __init__(self, name: str, outside: Mapping[str, str]) -> None:
        self.nodes: list[NodeProto] = []
        self.visible = dict(outside)
        self._prefix = f"{name}/" if name else ""

    def copy_in(self, nodes: Iterable[NodeProto]) -> None:
        for node in nodes:
            self.add_node(copied(node))

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        self.add_node(helper.make_node(operator, inputs, [output], name=output, **attributes))

    def add_node(self, node: NodeProto) -> None:
        if self._prefix:
            self.visible.update({name: f"{self._prefix}{name}" for name in defined_by(node)})
        rename(node, self.visible, self._prefix)
        self.nodes.append(node)


def _return_copies(outputs: Iterable[str], nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Replace outputs of a graph that branches in it capture with copies.

    OpenVINO would otherwise treat these outputs as outputs of the branches.
    """
    computed = {name for node in nodes for name in node.output}
    captured = {value for node in nodes if node.op_type == "If" for value in taken_by(node)}
    names = {name: f"{name}/value" for name in outputs if name in captured & computed}
    for node in nodes:
        rename(node, names)
    return [*nodes, *(helper.make_node("Identity", [value], [name], name=value) for name, value in names.items())]


def _condition(name: str) -> str:
    """Return the name of the one-element boolean value that tells whether a switch is requested."""
    return f"{WANTED}/{name}"
