"""Direct computation of the spatial means of gradients, without the gradients themselves.

This is possible if the last step of the backward pass is a matrix product with a weight.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx, nn

from tlcli.exports.trace.graph_nodes import is_call, is_weight

aten = torch.ops.aten


def append_mean_gradients(traced: fx.GraphModule, layers: int) -> list[bool]:
    """Append the spatial mean of each gradient to the joint graph's outputs, if it can be computed directly.

    This is possible if the last step of the backward pass is a matrix product with a weight, as with VGG's fc6 or the first layer of a
    hidden head. The mean is then a product with the weight averaged over the positions; for n positions, that matrix is n times
    smaller.

    Args:
        traced: joint graph, whose last `layers` outputs are the gradients; modified in place.
        layers: number of layers.

    Returns:
        One value per layer, True if its mean was appended.
    """
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    results = cast("tuple[Any, ...]", output.args[0])
    means, appended = [], []
    for gradient in results[len(results) - layers :]:
        product = _product_with_weight(gradient)
        appended.append(product is not None)
        if product is not None:
            with traced.graph.inserting_before(output):
                means.append(_mean_of(traced, gradient, product))
    output.args = ((*results, *means),)
    return appended


def _product_with_weight(gradient: fx.Node) -> fx.Node | None:
    """Return the matrix product whose reshaped result is the gradient.

    Returns None if the gradient is not such a product or has dynamic sizes.
    """
    _, _, height, width = gradient.meta["val"].shape
    if gradient.target not in (aten.view.default, aten.reshape.default) or not (isinstance(height, int) and isinstance(width, int)):
        return None
    product = gradient.args[0]
    return cast("fx.Node", product) if is_call(product, aten.mm.default) and is_weight(cast("fx.Node", product).args[1]) else None


def _mean_of(traced: fx.GraphModule, gradient: fx.Node, product: fx.Node) -> fx.Node:
    _, channels, height, width = gradient.meta["val"].shape
    rows, weight = cast("tuple[Any, ...]", product.args)
    name = f"{weight.target}_mean"
    value = getattr(traced, str(weight.target)).detach().unflatten(1, (channels, height * width)).mean(-1)
    traced.register_parameter(name, nn.Parameter(value, requires_grad=False))
    mean = traced.graph.call_function(aten.mm.default, (rows, traced.graph.get_attr(name)))
    mean.meta["val"] = gradient.meta["val"].flatten(2)[..., 0]
    return mean
