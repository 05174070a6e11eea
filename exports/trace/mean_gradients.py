"""Direct computation of the spatial means of gradients, without the gradients themselves.

This is possible if the last step of the backward pass is a matrix product with a weight, or a sum of such products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import Any, cast

import torch
from torch import fx, nn

from tlcli.exports.trace.graph_nodes import is_call, is_weight

aten = torch.ops.aten


def append_mean_gradients(traced: fx.GraphModule, layers: int) -> list[bool]:
    """Append the spatial mean of each gradient to the joint graph's outputs, if it can be computed directly.

    There are two such cases. The product's columns may be the channels and positions, as with VGG's fc6 or the first layer of a hidden
    head: the mean is a product with the weight averaged over the n positions, which is n times smaller. Or its rows may be the positions,
    as where a transformer projects its tokens to queries, keys and values: the mean is the product of the rows' mean, one row instead of n.

    Args:
        traced: joint graph, whose last `layers` outputs are the gradients; modified in place.
        layers: number of layers.

    Returns:
        One value per layer, True if its mean was appended.
    """
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    results = cast("tuple[Any, ...]", output.args[0])
    means, appended = [], []
    with traced.graph.inserting_before(output):
        for gradient in results[len(results) - layers :]:
            mean = _mean_of(traced, gradient)
            appended.append(mean is not None)
            if mean is not None:
                mean.meta["val"] = gradient.meta["val"].flatten(2)[..., 0]
                means.append(mean)
    output.args = ((*results, *means),)
    return appended


def _mean_of(traced: fx.GraphModule, gradient: fx.Node) -> fx.Node | None:
    """Insert the mean of a gradient `[N, c, h, w]`; None if it is no such product or has dynamic sizes."""
    if not all(isinstance(size, int) for size in gradient.meta["val"].shape[1:]):
        return None
    product = _product_with_weight(gradient)
    if product is not None:
        return _product_with_mean_weight(traced, gradient, product)
    tokens = _tokens_of(gradient)
    if tokens is None:
        return None
    graph = traced.graph
    return reduce(lambda first, second: graph.call_function(aten.add.Tensor, (first, second)), (_mean_row(graph, one) for one in tokens))


def _product_with_weight(node: Any) -> fx.Node | None:
    """Return the matrix product with a weight of which the node is a reshaping."""
    product = node.args[0] if isinstance(node, fx.Node) and node.target in _RESHAPES else None
    return cast("fx.Node", product) if is_call(product, aten.mm.default) and is_weight(cast("fx.Node", product).args[1]) else None


def _product_with_mean_weight(traced: fx.GraphModule, gradient: fx.Node, product: fx.Node) -> fx.Node:
    _, channels, height, width = gradient.meta["val"].shape
    rows, weight = cast("tuple[Any, ...]", product.args)
    name = f"{weight.target}_mean"
    value = getattr(traced, str(weight.target)).detach().unflatten(1, (channels, height * width)).mean(-1)
    traced.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return traced.graph.call_function(aten.mm.default, (rows, traced.graph.get_attr(name)))


@dataclass(frozen=True)
class _Tokens:
    """Product of all tokens with a weight, of which a range is the gradient's positions.

    product: matrix product with a weight, `[N * count, c]`. reshaped: the product as `[N, ..., c]`. count: number of tokens of an image.
    first, end: range of the positions among them.
    """

    product: fx.Node
    reshaped: fx.Node
    count: int
    first: int
    end: int


def _tokens_of(gradient: fx.Node) -> list[_Tokens] | None:
    """Return the products whose sum is the gradient, if their rows are its positions; otherwise None."""
    source: Any = gradient.args[0] if gradient.args else None
    if is_call(gradient, aten.permute.default) and list(cast("Any", gradient.args[1])) == [0, 3, 1, 2]:
        first, end = 0, None
    elif gradient.target in _RESHAPES and _swaps_last_two_of_three(source):
        source = source.args[0]
        first, end = 0, None
        if is_call(source, aten.slice.Tensor) and len(source.args) == 4 and source.args[1] == 1:
            source, _, first, end = source.args
    else:
        return None
    found = []
    for term in _terms(source):
        product = _product_with_weight(term)
        shape: tuple[Any, ...] = () if product is None else tuple(term.meta["val"].shape)
        if product is None or len(shape) < 3 or not all(isinstance(size, int) for size in shape[1:]):
            return None
        count = math.prod(shape[1:-1])
        if shape[-1] != product.meta["val"].shape[1] or not (isinstance(first, int) and isinstance(end, int | None)):
            return None
        found.append(_Tokens(product, term, count, *slice(first, end).indices(count)[:2]))
    return found


def _swaps_last_two_of_three(node: Any) -> bool:
    if not isinstance(node, fx.Node) or node.meta["val"].ndim != 3:
        return False
    if is_call(node, aten.transpose.int):
        return {cast("int", axis) % 3 for axis in node.args[1:]} == {1, 2}
    return is_call(node, aten.permute.default) and list(cast("Any", node.args[1])) == [0, 2, 1]


def _terms(node: Any) -> list[Any]:
    if is_call(node, aten.add.Tensor) and len(node.args) == 2 and not node.kwargs and all(isinstance(term, fx.Node) for term in node.args):
        return [term for summand in node.args for term in _terms(summand)]
    return [node]


def _mean_row(graph: fx.Graph, tokens: _Tokens) -> fx.Node:
    rows, weight = cast("tuple[fx.Node, fx.Node]", tokens.product.args)
    channels = rows.meta["val"].shape[1]
    images = tokens.reshaped.meta["val"].shape[0]
    number = cast("Any", tokens.reshaped.args[1])[0]

    def call(target: Any, arguments: tuple[Any, ...], *shape: Any) -> fx.Node:
        node = graph.call_function(target, arguments)
        node.meta["val"] = rows.meta["val"].new_empty(shape)
        return node

    each = call(aten.reshape.default, (rows, [number, tokens.count, channels]), images, tokens.count, channels)
    if (tokens.first, tokens.end) != (0, tokens.count):
        each = call(aten.slice.Tensor, (each, 1, tokens.first, tokens.end), images, tokens.end - tokens.first, channels)
    mean = call(aten.mean.dim, (each, [1]), images, channels)
    return call(aten.mm.default, (mean, weight), images, weight.meta["val"].shape[1])


_RESHAPES = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
