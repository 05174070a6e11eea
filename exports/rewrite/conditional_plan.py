"""Plan of the branches of a graph with conditional outputs: the scope that each node goes to.

Pure: nodes are read and never changed. `tlcli.exports.rewrite.conditional_outputs` writes the graph that a plan describes.
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

    empty: shape of the empty tensor that is returned when it is not computed.
    default: True if it is computed when the request leaves `wanted` out.
    common: True if it is requested often.
    """

    name: str
    empty: tuple[int, ...]
    default: bool
    common: bool = False


@dataclass(frozen=True)
class ConditionalPlan:
    """Scopes of a flat graph's nodes, as sets of node indices.

    always: outside of all branches.
    shared: in the branch around all switches, once for all of them.
    own: for each switch, in the branch that computes it; a node may be in the branches of several switches.
    takes: for each switch, the other switches that its branch takes.
    """

    always: frozenset[int]
    shared: frozenset[int]
    own: Mapping[str, frozenset[int]]
    takes: Mapping[str, tuple[str, ...]]

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Return these switches and those that they take, each after those that it takes."""
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
        """Return the switches that take this one, directly or by way of others."""
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
        nodes: in topological order; no output in `required` or `together` is computed from a switch.
        switches: the outputs to compute on request.
        required: the outputs to compute always.
        together: values to compute if any switch is requested.
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
    """Return upstream nodes of the common switches that depend on the images by their sizes only.

    It costs less to compute these once than in each branch that takes them. Weights in int8 are an exception: they are made float where
    they are multiplied with, and only there.
    """
    producer = producers(nodes)
    outside = {*always, *shared}
    cheap: set[int] = set()
    for index in sorted(upstream_nodes(nodes, common) - {*always} - downstream_nodes(nodes, IMAGES, without=["Shape"])):
        inputs = {producer[value] for value in taken_by(nodes[index]) if value in producer}
        if nodes[index].op_type != "DequantizeLinear" and inputs <= outside | cheap:
            cheap.add(index)
    return cheap
