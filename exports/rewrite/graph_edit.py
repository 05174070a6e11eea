"""What every rewriting of an ONNX graph is made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, MutableSequence, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

T = TypeVar("T", NodeProto, TensorProto)


def copied(part: T) -> T:
    """A node or a weight of its own: a graph that is emptied takes its own with it."""
    copy = type(part)()
    copy.CopyFrom(part)
    return copy


def replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Let these be the graph's nodes; its present ones may be among them."""
    kept = [copied(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def drop(values: MutableSequence[ValueInfoProto], names: Collection[str]) -> None:
    """Take inputs or outputs away."""
    kept = [value for value in values if value.name not in names]
    del values[:]
    values.extend(kept)


def add_constant(graph: GraphProto, name: str, value: int | Sequence[int] | npt.NDArray[Any]) -> str:
    """An initializer, int64 unless an array is given; answers its name."""
    array = value if isinstance(value, np.ndarray) else np.array(value, dtype=np.int64)
    graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def producers(nodes: Sequence[NodeProto]) -> dict[str, int]:
    """The number of the node that makes each value."""
    return {name: number for number, node in enumerate(nodes) for name in node.output}


def nodes_behind(nodes: Sequence[NodeProto], outputs: Iterable[str], stop: Collection[str] = ()) -> set[int]:
    """The numbers of the nodes that `outputs` are computed from, without those behind the values `stop`."""
    producer = producers(nodes)
    found: set[int] = set()
    waiting = list(outputs)
    while waiting:
        number = producer.get(waiting.pop())
        if number is not None and number not in found:
            found.add(number)
            waiting.extend(taken_by(nodes[number]).difference(stop))
    return found


def nodes_after(nodes: Sequence[NodeProto], value: str, without: Collection[str] = ()) -> set[int]:
    """The numbers of the nodes that depend on a value, not by way of the operators `without`; `nodes` are in topological order."""
    reached, found = {value}, set()
    for number, node in enumerate(nodes):
        if node.op_type not in without and not reached.isdisjoint(taken_by(node)):
            found.add(number)
            reached.update(node.output)
    return found


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Of an `If` or a `Loop`."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g


def with_inner(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes, and those in their subgraphs."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from with_inner(graph.node)


def taken_by(node: NodeProto) -> set[str]:
    """What a node takes, its subgraphs' captured values among it."""
    found = set(node.input)
    for graph in subgraphs(node):
        for inside in graph.node:
            found |= taken_by(inside)
        found |= {value.name for value in graph.output}  # a branch may answer what stands outside
    return found - {""}


def defined_by(node: NodeProto) -> set[str]:
    """The values that a node defines, in its subgraphs too."""
    found = {name for name in node.output if name}
    for graph in subgraphs(node):
        found |= {value.name for value in graph.input}
        for inside in graph.node:
            found |= defined_by(inside)
    return found


def rename(node: NodeProto, names: Mapping[str, str], prefix: str = "") -> None:
    """Give the values that a node and its subgraphs speak of other names, and the nodes themselves a prefix."""
    node.name = f"{prefix}{node.name}"
    for field in (node.input, node.output):
        renamed = [names.get(name, name) for name in field]
        del field[:]
        field.extend(renamed)
    for graph in subgraphs(node):
        for inside in graph.node:
            rename(inside, names, prefix)
        for value in (*graph.input, *graph.output):
            value.name = names.get(value.name, value.name)


def take_instead(node: NodeProto, old: str, new: str) -> None:
    """Let a node itself, not its subgraphs, take another value."""
    for place, value in enumerate(node.input):
        if value == old:
            node.input[place] = new
