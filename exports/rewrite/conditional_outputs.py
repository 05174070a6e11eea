"""Outputs that are not asked for are not computed: they stand in the branches of ONNX `If` operators.

A runtime computes a whole graph, whichever outputs a request fetches (ONNX Runtime's `only_execute_path_to_fetches` does
nothing in its released builds). So the graph itself takes an input, `wanted`: a truth value for each of these outputs.

One `If` stands around all of them, so that a request for scores alone meets a single condition; in it each output has an `If` of
its own, those that are seldom asked for behind one more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from tlcli.contract.model.description import IMAGES, WANTED
from tlcli.exports.rewrite.graph_edit import (
    add_constant,
    copied,
    defined_by,
    nodes_after,
    nodes_behind,
    producers,
    rename,
    replace_nodes,
    taken_by,
)


@dataclass(frozen=True)
class Switch:
    """An output that need not be computed.

    empty: the shape of the empty tensor that stands for it when it is not.
    default: whether it is computed when `wanted` is left out.
    common: asked for often.
    """

    name: str
    empty: tuple[int, ...]
    default: bool
    common: bool = False


def gate(graph: GraphProto, switches: Sequence[Switch], together: Mapping[str, tuple[int, ...]], shared: Sequence[str] = ()) -> None:
    """Rewrite `graph` in place.

    Args:
        graph: flat, save for loops; each switch is one of its outputs. One may be computed from another, as maps are from gradients:
            it then makes the other wanted.
        switches: in the order of `wanted`.
        together: int64 outputs that are computed if any switch is wanted, and the shapes of what stands for them if none is.
        shared: values that several switches take, computed likewise.
    """
    _Gate(graph, switches, together, shared).rewrite()


class _Gate:
    def __init__(
        self, graph: GraphProto, switches: Sequence[Switch], together: Mapping[str, tuple[int, ...]], shared: Sequence[str]
    ) -> None:
        self.graph = graph
        self.switches = {switch.name: switch for switch in switches}
        self.number = {switch.name: number for number, switch in enumerate(switches)}
        self.together = together
        self.empties: dict[tuple[int, tuple[int, ...]], str] = {}
        self.nodes = list(graph.node)
        kept = [output.name for output in graph.output if output.name not in {*self.switches, *together}]
        for name in self._made_anyway([*kept, *together, *shared]):
            for node in self.nodes:
                rename(node, {name: f"{name}/made"})
            self.nodes.append(helper.make_node("Identity", [f"{name}/made"], [name], name=name))
        self.always = self._behind(kept)
        self.body = self._behind([*together, *shared]) - self.always
        # Sizes and the like cost less than to be computed in each branch that takes them.
        often = self._behind([name for name, switch in self.switches.items() if switch.common])
        producer = producers(self.nodes)
        # Not so weights in int8: they become float where they are multiplied with, and only there.
        for number in sorted(often - self.always - nodes_after(self.nodes, IMAGES, without=["Shape"])):
            if self.nodes[number].op_type != "DequantizeLinear" and all(
                producer[name] in self.always | self.body for name in taken_by(self.nodes[number]) if name in producer
            ):
                self.body.add(number)
        self.own = {name: self._behind([name], stop=self.switches.keys() - {name}) - self.always - self.body for name in self.switches}
        self.takes = {
            name: [other for other in self.switches if any(other in taken_by(self.nodes[number]) for number in numbers)]
            for name, numbers in self.own.items()
        }

    def _behind(self, outputs: Iterable[str], stop: Collection[str] = ()) -> set[int]:
        return nodes_behind(self.nodes, outputs, stop)

    def _made_anyway(self, outputs: Sequence[str]) -> list[str]:
        """The switches that are computed for other outputs: what a branch answers must be made in it."""
        needed, producer = self._behind(outputs), producers(self.nodes)
        return [name for name in self.switches if producer[name] in needed]

    def rewrite(self) -> None:
        common = self._in_order(name for name, switch in self.switches.items() if switch.common)
        rare = [name for name in self._in_order(self.switches) if name not in common]
        body = _Body("asked", {})
        body.take(self.nodes[number] for number in sorted(self.body))
        body.add("ReduceMax", [WANTED, self._constant("rows", [0])], f"{WANTED}/any_row", keepdims=0)
        conditions = [_condition(name) for name in self.switches]
        body.add_node(helper.make_node("Split", [f"{WANTED}/any_row"], conditions, axis=0, num_outputs=len(conditions)))
        for name in common:
            self._add_leaf(body, name)
        if rare:
            inner = _Body("seldom", body.visible)
            for name in rare:
                self._add_leaf(inner, name)
            empties = {name: self.switches[name].empty for name in rare}
            self._add_if(body, "seldom", self._any(body, "seldom", rare), inner, empties)

        graph = self.graph
        top = _Body("", {})
        top.take(self.nodes[number] for number in sorted(self.always))
        top.add("ReduceMax", [WANTED], f"{WANTED}/any", keepdims=0)
        empties = {**self.together, **{name: switch.empty for name, switch in self.switches.items()}}
        self._add_if(top, "asked", f"{WANTED}/any", body, empties)
        replace_nodes(graph, _answer_copies((output.name for output in graph.output), top.nodes))
        graph.input.append(helper.make_tensor_value_info(WANTED, TensorProto.BOOL, [None, len(self.switches)]))
        defaults = np.array([[switch.default for switch in self.switches.values()]])
        graph.initializer.append(numpy_helper.from_array(defaults, WANTED))

    def _add_leaf(self, body: _Body, name: str) -> None:
        inner = _Body(name, body.visible)
        inner.take(self.nodes[number] for number in sorted(self.own[name]))
        self._add_if(body, name, self._any(body, name, [name, *self._users(name)]), inner, {name: self.switches[name].empty})

    def _any(self, body: _Body, name: str, names: Sequence[str]) -> str:
        """The value that says whether any of `names` is wanted."""
        if len(names) == 1:
            return _condition(names[0])
        numbers = self._constant(f"numbers/{name}", [self.number[one] for one in names])
        body.add("Gather", [f"{WANTED}/any_row", numbers], f"{WANTED}/{name}/each", axis=0)
        body.add("ReduceMax", [f"{WANTED}/{name}/each"], f"{WANTED}/{name}/any", keepdims=0)
        return f"{WANTED}/{name}/any"

    def _add_if(self, body: _Body, name: str, condition: str, inner: _Body, empties: Mapping[str, tuple[int, ...]]) -> None:
        """`empties.keys() = inner if condition else empty tensors`."""
        types = {value: TensorProto.INT64 if value in self.together else TensorProto.FLOAT for value in empties}
        absent = []
        for value, shape in empties.items():
            none = f"{name}/none/{value}"
            absent.append(helper.make_node("Identity", [self._empty(types[value], shape)], [none], name=none))
        nodes = _answer_copies([inner.visible[value] for value in empties], inner.nodes)
        body.add_node(
            helper.make_node(
                "If",
                [condition],
                list(empties),
                name=f"if/{name}",
                then_branch=helper.make_graph(
                    nodes, f"{name}/then", [], [_value(inner.visible[v], types[v], len(s)) for v, s in empties.items()]
                ),
                else_branch=helper.make_graph(
                    absent, f"{name}/else", [], [_value(f"{name}/none/{v}", types[v], len(s)) for v, s in empties.items()]
                ),
            )
        )

    def _constant(self, name: str, value: int | Sequence[int]) -> str:
        return add_constant(self.graph, f"{WANTED}/{name}", value)

    def _empty(self, kind: int, shape: tuple[int, ...]) -> str:
        """Kept once: as a constant of each branch it would take memory in each."""
        if (kind, shape) not in self.empties:
            name = f"{WANTED}/empty/{len(self.empties)}"
            values = np.zeros(shape, dtype=helper.tensor_dtype_to_np_dtype(kind))
            self.empties[kind, shape] = add_constant(self.graph, name, values)
        return self.empties[kind, shape]

    def _in_order(self, names: Iterable[str]) -> list[str]:
        """These and what they take, each after what it takes."""
        ordered: list[str] = []

        def add(name: str) -> None:
            for other in self.takes[name]:
                add(other)
            if name not in ordered:
                ordered.append(name)

        for name in names:
            add(name)
        return ordered

    def _users(self, name: str) -> list[str]:
        """Those that take it, or take one that does."""
        found: list[str] = []
        waiting = [name]
        while waiting:
            current = waiting.pop()
            for other, taken in self.takes.items():
                if current in taken and other not in found:
                    found.append(other)
                    waiting.append(other)
        return found


class _Body:
    """Nodes of one scope. Values that are defined in it get names of their own: no name may stand in two scopes.

    visible: what each value of the flat graph is called here.
    """

    def __init__(self, name: str, outside: Mapping[str, str]) -> None:
        self.nodes: list[NodeProto] = []
        self.visible = dict(outside)
        self._prefix = f"{name}/" if name else ""

    def take(self, nodes: Iterable[NodeProto]) -> None:
        for node in nodes:
            self.add_node(copied(node))

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        self.add_node(helper.make_node(operator, inputs, [output], name=output, **attributes))

    def add_node(self, node: NodeProto) -> None:
        if self._prefix:
            self.visible.update({name: f"{self._prefix}{name}" for name in defined_by(node)})
        rename(node, self.visible, self._prefix)
        self.nodes.append(node)


def _answer_copies(outputs: Iterable[str], nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Let a graph or a branch answer copies of those outputs that branches in it take: OpenVINO counts them among the branches' own."""
    made = {name for node in nodes for name in node.output}
    taken = {value for node in nodes if node.op_type == "If" for value in taken_by(node)}
    names = {name: f"{name}/value" for name in outputs if name in taken & made}
    for node in nodes:
        rename(node, names)
    return [*nodes, *(helper.make_node("Identity", [value], [name], name=value) for name, value in names.items())]


def _condition(name: str) -> str:
    """The value that says whether a switch is wanted: one element."""
    return f"{WANTED}/{name}"


def _value(name: str, kind: int, rank: int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [None] * rank)
