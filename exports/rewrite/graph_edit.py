"""Helpers for editing ONNX graphs, shared by all rewriting passes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, MutableSequence, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

T = TypeVar("T", NodeProto, TensorProto)


def copied(part: T) -> T:
    """Return a copy of a node or weight. Copies are needed because clearing a graph destroys the messages in it."""
    copy = type(part)()
    copy.CopyFrom(part)
    return copy


def replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Replace the graph's nodes. The new nodes may include existing ones."""
    kept = [copied(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def drop(values: MutableSequence[ValueInfoProto], names: Collection[str]) -> None:
    """Remove the inputs or outputs with the given names from a list, in place."""
    kept = [value for value in values if value.name not in names]
    del values[:]
    values.extend(kept)


def add_constant(graph: GraphProto, name: str, value: int | Sequence[int] | npt.NDArray[Any]) -> str:
    """Add an initializer to the graph and return its name. Values other than arrays are stored as int64."""
    array = value if isinstance(value, np.ndarray) else np.array(value, dtype=np.int64)
    graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def producers(nodes: Sequence[NodeProto]) -> dict[str, int]:
    """Return a mapping from each value's name to the index of the node that computes it."""
    return {name: index for index, node in enumerate(nodes) for name in node.output}


def upstream_nodes(nodes: Sequence[NodeProto], outputs: Iterable[str], stop: Collection[str] = ()) -> set[int]:
    """Return the indices of the nodes from which `outputs` are computed. The traversal stops at the values in `stop`."""
    producer = producers(nodes)
    indices: set[int] = set()
    waiting = list(outputs)
    while waiting:
        index = producer.get(waiting.pop())
        if index is not None and index not in indices:
            indices.add(index)
            waiting.extend(taken_by(nodes[index]).difference(stop))
    return indices


def downstream_nodes(nodes: Sequence[NodeProto], value: str, without: Collection[str] = ()) -> set[int]:
    """Return the indices of the nodes that depend on a value.

    Args:
        nodes: nodes in topological order.
        value: name of the value.
        without: operator types through which dependencies are not followed.
    """
    reached, indices = {value}, set()
    for index, node in enumerate(nodes):
        if node.op_type not in without and not reached.isdisjoint(taken_by(node)):
            indices.add(index)
            reached.update(node.output)
    return indices


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the subgraphs of a node, such as the branches of an `If` or the body of a `Loop`."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g


def with_inner(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield the given nodes and, recursively, the nodes in their subgraphs."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from with_inner(graph.node)


def taken_by(node: NodeProto) -> set[str]:
    """Return the names of the values that a node uses, including those inside its subgraphs."""
    names = set(node.input)
    for graph in subgraphs(node):
        for inside in graph.node:
            names |= taken_by(inside)
        names |= {value.name for value in graph.output}  # a branch may return a value from outside
    return names - {""}


def defined_by(node: NodeProto) -> set[str]:
    """Return the names of the values that a node defines, including those in its subgraphs."""
    names = {name for name in node.output if name}
    for graph in subgraphs(node):
        names |= {value.name for value in graph.input}
        for inside in graph.node:
            names |= defined_by(inside)
    return names


def rename(node: NodeProto, names: Mapping[str, str], prefix: str = "") -> None:
    """Rename the values that a node and its subgraphs refer to, and prepend `prefix` to the names of the nodes, in place."""
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
    """Replace the input `old` of a node with `new`. Its subgraphs are not modified."""
    for position, value in enumerate(node.input):
        if value == old:
            node.input[position] = new
