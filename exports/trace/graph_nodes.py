"""Helpers that inspect the nodes of an FX graph.

The `meta["val"]` of a traced node is a fake tensor or a symbolic size: its shape is known, but its values are not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx


def is_call(node: Any, target: Any) -> bool:
    """Return True if the node calls the operator `target`."""
    return isinstance(node, fx.Node) and node.target is target


def is_weight(node: Any) -> bool:
    """Return True if the node reads a parameter or constant of the module."""
    return isinstance(node, fx.Node) and node.op == "get_attr"


def shape_of(node: fx.Node) -> list[Any]:
    """Return the shape of a node's value, with numbers for fixed sizes and symbols for dynamic sizes."""
    return [*node.meta["val"].shape]


def number_of_images(inputs: fx.Node) -> Any:
    """Return the symbol of the number of images of a graph's input, or None if an operator has fixed that number."""
    rows = inputs.meta["val"].shape[0]
    return None if not isinstance(rows, torch.SymInt) or rows.node.expr.is_number else rows.node.expr


def is_size(node: fx.Node, size: Any) -> bool:
    """Return True if the node's value is exactly the symbolic size `size`."""
    value = node.meta.get("val")
    return isinstance(value, torch.SymInt) and value.node.expr == size


def grows_with(node: fx.Node, size: Any) -> bool:
    """Return True if the node's value or any of its dimensions depends on the symbolic size `size`."""
    value = node.meta.get("val")
    sizes = value.shape if isinstance(value, Tensor) else [value]
    return any(_contains(dimension, size) for dimension in sizes)


def rows_per_image(node: fx.Node, batch: Any) -> int:
    """Return the number of rows that a value has per image, or 0 if the value does not grow with the batch.

    Raises:
        NotImplementedError: the value grows with the batch other than by a fixed number of rows per image.
    """
    if not grows_with(node, batch):
        return 0
    first, *others = node.meta["val"].shape
    rows = first.node.expr / batch if isinstance(first, torch.SymInt) else None
    if rows is None or not rows.is_integer or not rows.is_number or any(_contains(dimension, batch) for dimension in others):
        raise NotImplementedError(f"{node.name} of shape {list(node.meta['val'].shape)} does not have separate rows for each image")
    return int(rows)


def _contains(value: Any, size: Any) -> bool:
    return isinstance(value, torch.SymInt) and size in value.node.expr.free_symbols
