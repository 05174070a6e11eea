"""The gradient of a head without autograd: traced once, cut into a forward and a backward graph of plain operators.

A class activation map needs dy/dA, the derivative of a class logit y with respect to the activations A. That is
a vector-Jacobian product of the head `A -> logits`. It is traced here into ordinary operators, so that exporting
it needs no autograd, and cut in two: what does not depend on the class runs once a picture, what does depend on it
runs once a class.
"""

from __future__ import annotations

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
            activations: an example, `[N, c, h, w]` with N of at least 3, so that N is told from the other sizes.
        """
        super().__init__()
        activations = activations.contiguous()  # in channels-last order the tracer would write strides into the graph

        def joint(a: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
            logits, pullback, *_ = torch.func.vjp(head, a)
            return logits, cast(Tensor, pullback(cotangent)[0])

        with torch.no_grad():
            cotangent = torch.ones_like(head(activations))
        traced = make_fx(
            torch.func.functionalize(joint, remove="mutations_and_views"),
            decomposition_table=DECOMPOSITIONS,
            tracing_mode="symbolic",
            _allow_non_fake_inputs=True,
        )(activations, cotangent)
        traced.graph.eliminate_dead_code()
        self.forward_graph, self.backward_graph, self._per_picture = _cut(traced)

    def forward(self, activations: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """`[N, c, h, w]` to logits `[N, C]` and what `pull_back` needs."""
        logits, *remembered = self.forward_graph(activations)
        return logits, tuple(remembered)

    def pull_back(self, cotangents: Tensor, remembered: tuple[Any, ...]) -> Tensor:
        """Weights of the logits, `[N, K, C]`, to the derivative of their weighted sum: `[N, K, c, h, w]`."""
        n, k, _ = cotangents.shape
        repeated = [_repeat(value, k) if per_picture else value for value, per_picture in zip(remembered, self._per_picture, strict=True)]
        gradients = self.backward_graph(cotangents.flatten(0, 1), *repeated)
        return cast(Tensor, gradients.unflatten(0, (n, k)))


def _repeat(value: Tensor, times: Any) -> Tensor:
    """`[N, ...]` to `[N * times, ...]`, each row `times` times in a row."""
    return value.unsqueeze(1).expand(-1, times, *([-1] * (value.ndim - 1))).flatten(0, 1)


def _cut(traced: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule, list[bool]]:
    """The joint graph `(A, cotangent) -> (logits, gradient)` as a forward and a backward graph, and which of
    the values handed over have a row a picture."""
    activations, cotangent = (node for node in traced.graph.nodes if node.op == "placeholder")
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    logits, gradient = output.args[0]
    batch = activations.meta["val"].shape[0].node.expr

    behind: set[fx.Node] = {cotangent}
    for node in traced.graph.nodes:
        if node.op == "call_function" and not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)

    # Sizes that grow with the batch are read anew from the cotangent, which has a row a picture and class.
    remembered: list[fx.Node] = []
    for node in traced.graph.nodes:
        if node not in behind or node is cotangent:
            continue
        for value in node.all_input_nodes:
            if value not in behind and value.op != "get_attr" and not _is_batch_size(value, batch) and value not in remembered:
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
        if _is_batch_size(node, batch):
            environment[node] = rows
    needed = (node for node in traced.graph.nodes if node not in environment and (node in behind or node.op == "get_attr"))
    copies = _copy(needed, backward, environment)
    backward.output(copies[gradient])

    graphs = []
    for graph in (forward, backward):
        graph.eliminate_dead_code()
        graphs.append(fx.GraphModule(traced, graph))
    per_picture = [isinstance(node.meta["val"], Tensor) and _has_row_a_picture(node, batch) for node in remembered]
    return graphs[0], graphs[1], per_picture


def _copy(nodes: Iterable[fx.Node], graph: fx.Graph, environment: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    copies = dict(environment)
    for node in nodes:
        copies[node] = graph.node_copy(node, lambda value: copies[value])
    return copies


def _is_batch_size(node: fx.Node, batch: Any) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.SymInt) and value.node.expr == batch


def _has_row_a_picture(node: fx.Node, batch: Any) -> bool:
    shape = node.meta["val"].shape
    return len(shape) > 0 and isinstance(shape[0], torch.SymInt) and shape[0].node.expr == batch
