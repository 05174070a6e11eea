"""Plan for the branches of a graph with conditional outputs, which assigns each node to a scope.

Planning only reads the nodes and never modifies them. `tlcli.exports.rewrite.conditional_outputs` writes the graph from a plan.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from tlcli.contract.model.description import IMAGES
from tlcli.exports.rewrite.graph_edit import downstream_nodes, producers, taken_by, upstream_nodes


@dataclass(frozen=True)
class Switch:
    """Output that is computed on request.

    name: name of the graph's output.
    empty: shape of the empty tensor that is returned if the output is not computed.
    default: True if the output is computed when a request omits `wanted`.
    common: True if the output is requested often.
    """

    name: str
    empty: tuple[int, ...]
    default: bool
    common: bool = False


@dataclass(frozen=True)
class ConditionalPlan:
    """Scopes of a flat graph's nodes, as sets of node indices.

    always: nodes outside all branches.
    shared: nodes in the branch around all switches, which are computed once for all of them.
    own: for each switch, the nodes in the branch that computes it; a node may be in the branches of several switches.
    takes: for each switch, the other switches that its branch uses.
    """

    always: frozenset[int]
    shared: frozenset[int]
    own: Mapping[str, frozenset[int]]
    takes: Mapping[str, tuple[str, ...]]

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Return the given switches and all switches that they use, each after those that it uses."""
        ordered: list[str] = []

        def add(name: str) -> None:
            for other in self.takes[name]:
                add(other)
            if name not in ordered:
                ordered.append(name)

        for name in names:
            add(name)
        return ordered

    def users(self, name: str) -> list[str]:
        """Return the switches that use the given one directly or indirectly."""
        users: list[str] = []
        waiting = [name]
        while waiting:
            current = waiting.pop()
            for other, taken in self.takes.items():
                if current in taken and other not in users:
                    users.append(other)
                    waiting.append(other)
        return users


def plan_conditions(
    nodes: Sequence[NodeProto], switches: Sequence[Switch], required: Collection[str], together: Collection[str]
) -> ConditionalPlan:
    """Assign the nodes of a flat graph to scopes.

    Args:
        nodes: nodes in topological order; no output in `required` or `together` may be computed from a switch.
        switches: outputs to compute on request.
        required: outputs that are always computed.
        together: values that are computed if any switch is requested.
    """
    names = [switch.name for switch in switches]
    always = upstream_nodes(nodes, required)
    shared = upstream_nodes(nodes, together) - always
    shared |= _cheap_nodes(nodes, [switch.name for switch in switches if switch.common], always, shared)
    own = {name: upstream_nodes(nodes, [name], stop={*names} - {name}) - always - shared for name in names}
    taken = {name: set[str]().union(*(taken_by(nodes[index]) for index in own[name])) for name in names}
    return ConditionalPlan(
        always=frozenset(always),
        shared=frozenset(shared),
        own={name: frozenset(indices) for name, indices in own.items()},
        takes={name: tuple(other for other in names if other in taken[name]) for name in names},
    )


def _cheap_nodes(nodes: Sequence[NodeProto], common: Sequence[str], always: Collection[int], shared: Collection[int]) -> set[int]:
    """Return upstream nodes of the common switches that depend on the images only through their sizes.

    Computing these nodes once costs less than computing them in each branch that uses them. The dequantisation of int8 weights is an
    exception: weights are converted to float only in the branches that multiply with them.
    """
    producer = producers(nodes)
    outside = {*always, *shared}
    cheap: set[int] = set()
    for index in sorted(upstream_nodes(nodes, common) - {*always} - downstream_nodes(nodes, IMAGES, without=["Shape"])):
        inputs = {producer[value] for value in taken_by(nodes[index]) if value in producer}
        if nodes[index].op_type != "DequantizeLinear" and inputs <= outside | cheap:
            cheap.add(index)
    return cheap
