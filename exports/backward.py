"""The gradient of a head without autograd: traced once, cut into a forward and a backward graph of plain operators.

A class activation map needs dy/dA, the derivative of a class logit y with respect to the activations A. That is
a vector-Jacobian product of the head `A -> logits`. It is traced here into ordinary operators, so that exporting
it needs no autograd, and cut in two: what does not depend on the class runs once a picture, what does depend on it
runs once a class.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from exports.decompositions import DECOMPOSITIONS


class TracedHead(nn.Module):
    """A head `[N, c, h, w] -> [N, C]` and its vector-Jacobian product, as two graphs.

    forward_graph: A to the logits and what the backward graph needs to remember of them (masks, sizes).
    backward_graph: a cotangent `[M, C]` and what was remembered to dy/dA `[M, c, h, w]`.
    """

    def __init__(self, head: Callable[[Tensor], Tensor], activations: Tensor) -> None:
        """Trace `head`.

        Args:
            head: differentiable; every picture independent of the others in its batch.
            activations: an example of one picture's, `[c, h, w]`.
        """
        super().__init__()
        with torch.no_grad():
            classes = head(activations[None]).shape[1]
        # The tracer takes sizes that are equal in the example for one and the same, and 0 and 1 for constants.
        rows = next(number for number in itertools.count(3) if number not in (*activations.shape, classes))
        # Copied into row-major order: in channels-last order the tracer would write strides into the graph.
        activations = activations.expand(rows, -1, -1, -1).contiguous()

        def joint(a: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
            logits, pullback, *_ = torch.func.vjp(head, a)
            return logits, cast("Tensor", pullback(cotangent)[0])

        traced = make_fx(
            torch.func.functionalize(joint, remove="mutations_and_views"),
            decomposition_table=DECOMPOSITIONS,
            tracing_mode="symbolic",
            _allow_non_fake_inputs=True,
        )(activations, torch.ones(rows, classes))
        traced.graph.eliminate_dead_code()
        self.forward_graph, self.backward_graph, self._rows_a_picture = _cut(traced)

    def forward(self, activations: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """`[N, c, h, w]` to logits `[N, C]` and what `pull_back` needs."""
        logits, *remembered = self.forward_graph(activations)
        return logits, tuple(remembered)

    def pull_back(self, cotangents: Tensor, remembered: tuple[Any, ...]) -> Tensor:
        """Weights of the logits, `[N, K, C]`, to the derivative of their weighted sum: `[N, K, c, h, w]`."""
        n, k, _ = cotangents.shape
        repeated = [_repeat(value, k, rows) if rows else value for value, rows in zip(remembered, self._rows_a_picture, strict=True)]
        gradients = self.backward_graph(cotangents.flatten(0, 1), *repeated)
        return cast("Tensor", gradients.unflatten(0, (n, k)))


def _repeat(value: Tensor, times: Any, rows: int) -> Tensor:
    """`[N * rows, ...]` to `[N * times * rows, ...]`, each picture's rows `times` times in a row."""
    pictures = value.reshape(-1, 1, rows, *value.shape[1:])
    return pictures.expand(-1, times, *([-1] * value.ndim)).flatten(0, 2)


def _cut(traced: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule, list[int]]:
    """The joint graph `(A, cotangent) -> (logits, gradient)` as a forward and a backward graph, and how many rows a
    picture each of the values handed over has: 0 for those that do not grow with the batch.

    Raises:
        NotImplementedError: a value grows with the batch in another way.
    """
    activations, cotangent = (node for node in traced.graph.nodes if node.op == "placeholder")
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    logits, gradient = output.args[0]
    batch = activations.meta["val"].shape[0].node.expr

    behind: set[fx.Node] = {cotangent}
    for node in traced.graph.nodes:
        if node.op == "call_function" and not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)

    # Sizes that grow with the batch, and constants of such sizes, are computed anew in the backward graph: from the
    # cotangent, which has a row a picture and class.
    seen: set[fx.Node] = {activations}
    for node in traced.graph.nodes:
        if not isinstance(node.meta.get("val"), torch.SymInt) and not seen.isdisjoint(node.all_input_nodes):
            seen.add(node)
    again = {node for node in traced.graph.nodes if _grows_with(node, batch) and node not in behind | seen}
    remembered: list[fx.Node] = []
    for node in traced.graph.nodes:
        if node not in behind | again or node is cotangent or _is(node, batch):
            continue
        for value in node.all_input_nodes:
            if value not in behind | again and value.op != "get_attr" and value not in remembered:
                remembered.append(value)

    forward = fx.Graph()
    copies = _copy((node for node in traced.graph.nodes if node not in behind and node.op != "output"), forward, {})
    forward.output((copies[logits], *(copies[node] for node in remembered)))

    backward = fx.Graph()
    environment = {cotangent: backward.placeholder("cotangent")}
    environment[cotangent].meta = dict(cotangent.meta)
    for number, node in enumerate(remembered):
        environment[node] = backward.placeholder(f"remembered_{number}")
        environment[node].meta = dict(node.meta)
    rows = backward.call_function(torch.ops.aten.sym_size.int, (environment[cotangent], 0))
    for node in traced.graph.nodes:
        if _is(node, batch):
            environment[node] = rows
    needed = (node for node in traced.graph.nodes if node not in environment and (node in behind | again or node.op == "get_attr"))
    copies = _copy(needed, backward, environment)
    backward.output(copies[gradient])

    graphs = []
    for graph in (forward, backward):
        graph.eliminate_dead_code()
        graphs.append(fx.GraphModule(traced, graph))
    return graphs[0], graphs[1], [_rows_a_picture(node, batch) for node in remembered]


def _copy(nodes: Iterable[fx.Node], graph: fx.Graph, environment: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    copies = dict(environment)
    for node in nodes:
        copies[node] = graph.node_copy(node, lambda value: copies[value])
    return copies


def _is(node: fx.Node, size: Any) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.SymInt) and value.node.expr == size


def _grows_with(node: fx.Node, size: Any) -> bool:
    value = node.meta.get("val")
    sizes = value.shape if isinstance(value, Tensor) else [value]
    return any(_contains(one, size) for one in sizes)


def _rows_a_picture(node: fx.Node, batch: Any) -> int:
    if not _grows_with(node, batch):
        return 0
    first, *others = node.meta["val"].shape
    rows = first.node.expr / batch if isinstance(first, torch.SymInt) else None
    if rows is None or not rows.is_integer or not rows.is_number or any(_contains(one, batch) for one in others):
        raise NotImplementedError(f"{node.name} of shape {list(node.meta['val'].shape)} has no rows of its own for each picture")
    return int(rows)


def _contains(value: Any, size: Any) -> bool:
    return isinstance(value, torch.SymInt) and size in value.node.expr.free_symbols
