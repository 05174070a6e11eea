"""Simplification of a traced graph: removes copies and added zeros, and brings products with weights into one form.

A traced graph has no in-place writes, so copies of views can become views again. Products with a weight get the same form in the forward
and the backward pass, so that later passes recognise a weight that both use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn

from tlcli.exports.trace.decompositions import covers
from tlcli.exports.trace.graph_nodes import is_call, is_weight, shape_of

aten = torch.ops.aten

_VIEWS = (aten.view_copy.default, aten.view.default, aten._unsafe_view.default)
_COPIES = (aten.clone.default, aten.lift_fresh.default, aten.detach.default, aten.detach_.default)


class StridedWriteError(NotImplementedError):
    """A network that writes into a slice of a tensor: its gradient is traced with strides, which ONNX does not support."""


@dataclass(frozen=True)
class Rewrite:
    """Rewrite rule for nodes of the graph.

    matches: predicate that returns True for the nodes to rewrite.
    apply: function that rewrites a matching node of the traced module.
    """

    matches: Callable[[fx.Node], bool]
    apply: Callable[[fx.GraphModule, fx.Node], None]


def simplify(traced: fx.GraphModule) -> None:
    """Apply all `REWRITES` to each node in graph order, in place.

    Raises:
        StridedWriteError: the graph contains an operator on strides.
    """
    calls = [node for node in traced.graph.nodes if node.op == "call_function"]
    if any("as_strided" in str(node.target) for node in calls):
        raise StridedWriteError("the network writes into a slice of a tensor")
    for node in calls:
        for rewrite in REWRITES:
            if rewrite.matches(node):
                rewrite.apply(traced, node)
    traced.graph.eliminate_dead_code()


def _is_view(node: fx.Node) -> bool:
    return node.target in _VIEWS


def _to_reshape(_traced: fx.GraphModule, node: fx.Node) -> None:
    """Turn a view into a reshape, which accepts any memory layout."""
    node.target = aten.reshape.default


def _is_copy_of_view(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._opname.endswith("_copy")


def _to_view(_traced: fx.GraphModule, node: fx.Node) -> None:
    """Turn a copying operator into its view, such as `slice_copy` into `slice`.

    `_to_copy`, which converts types, is left unchanged because there is no operator `_to`.
    """
    target = cast("torch._ops.OpOverload", node.target)
    view = getattr(aten, target._opname.removesuffix("_copy"), None)
    node.target = getattr(view, target._overloadname, target)


def _is_identity(node: fx.Node) -> bool:
    """Match copies and additions of zeros of the same shape."""
    return node.target in _COPIES or (
        node.target is aten.add.Tensor
        and is_call(node.args[1], aten.zeros_like.default)
        and shape_of(cast("fx.Node", node.args[1])) == shape_of(cast("fx.Node", node.args[0]))
    )


def _to_input(_traced: fx.GraphModule, node: fx.Node) -> None:
    node.replace_all_uses_with(cast("fx.Node", node.args[0]))


def _is_double_transpose(node: fx.Node) -> bool:
    return node.target is aten.t.default and is_call(node.args[0], aten.t.default)


def _to_input_of_input(_traced: fx.GraphModule, node: fx.Node) -> None:
    node.replace_all_uses_with(cast("Any", node.args[0]).args[0])


def _is_linear(node: fx.Node) -> bool:
    """Match `bias + x @ weight.t()`."""
    return node.target is aten.addmm.default and is_call(node.args[2], aten.t.default) and not node.kwargs


def _to_linear(traced: fx.GraphModule, node: fx.Node) -> None:
    bias, inputs, transposed = cast("tuple[Any, ...]", node.args)
    with traced.graph.inserting_before(node):
        _replace(node, aten.linear.default, (inputs, transposed.args[0], bias))


def _is_covering_convolution(node: fx.Node) -> bool:
    """Match a convolution whose kernel covers the entire input, as in VGG's fc6."""
    if node.target is not aten.convolution.default:
        return False
    inputs, weight, _, _, padding, dilation, transposed, _, groups = cast("tuple[Any, ...]", node.args)
    return not transposed and is_weight(weight) and covers(shape_of(inputs), shape_of(weight), padding, dilation, groups)


def _to_product_with_rows(traced: fx.GraphModule, node: fx.Node) -> None:
    """Turn a covering convolution into a linear layer on the flattened input."""
    inputs, weight, bias = cast("tuple[Any, ...]", node.args)[:3]
    with traced.graph.inserting_before(node):
        flat = traced.graph.call_function(aten.flatten.using_ints, (inputs, 1))
        rows = traced.graph.call_function(aten.linear.default, (flat, _flat_weight(traced, weight), bias))
        flat.meta["val"] = inputs.meta["val"].flatten(1)
        rows.meta["val"] = node.meta["val"].flatten(1)
        _replace(node, aten.reshape.default, (rows, [-1, node.meta["val"].shape[1], 1, 1]))


def _is_flattened_weight(node: fx.Node) -> bool:
    """Match the reshape of a weight to a matrix with one row per output channel."""
    if node.target not in (aten.view.default, aten.reshape.default) or not is_weight(node.args[0]):
        return False
    weight, shape = cast("tuple[Any, ...]", node.args)
    return len(shape) == 2 and list(shape) == list(weight.meta["val"].flatten(1).shape)


def _to_flat_weight(traced: fx.GraphModule, node: fx.Node) -> None:
    with traced.graph.inserting_before(node):
        node.replace_all_uses_with(_flat_weight(traced, cast("fx.Node", node.args[0])))


REWRITES = (
    Rewrite(_is_view, _to_reshape),
    Rewrite(_is_copy_of_view, _to_view),
    Rewrite(_is_identity, _to_input),
    Rewrite(_is_double_transpose, _to_input_of_input),
    Rewrite(_is_linear, _to_linear),
    Rewrite(_is_covering_convolution, _to_product_with_rows),
    Rewrite(_is_flattened_weight, _to_flat_weight),
)
"""Rewrites in the order in which they are tried on a node. The first two change the node's operator; later ones match the new operator."""


def _flat_weight(traced: fx.GraphModule, weight: fx.Node) -> fx.Node:
    """Insert a node that reads the weight as a matrix with one row per output channel.

    The matrix is registered as a separate parameter of the module and shares memory with the weight.
    """
    name = f"{weight.target}_flat"
    if not hasattr(traced, name):
        value = getattr(traced, str(weight.target)).detach().flatten(1)
        traced.register_parameter(name, nn.Parameter(value, requires_grad=False))
    node = traced.graph.get_attr(name)
    node.meta["val"] = weight.meta["val"].flatten(1)
    return node


def _replace(node: fx.Node, target: Any, arguments: tuple[Any, ...]) -> None:
    """Insert a call at the graph's insertion point, and replace all uses of `node` with its result."""
    replacement = node.graph.call_function(target, arguments)
    replacement.meta = dict(node.meta)
    node.replace_all_uses_with(replacement)
