"""Restriction of a traced transformer to the tokens on which its scores depend.

Behind the last attention of a vision transformer that classifies the class token, the other tokens have no effect on the scores. Networks
compute them nevertheless, and so would the gradient, as rows of zeros. Here, the selection of the class token moves up the graph, through
operators that treat each token separately, to the query of the last attention. The forward and the backward pass then compute one token
instead of all.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, fx

from tlcli.exports.trace.graph_nodes import is_call

aten = torch.ops.aten

_ELEMENTWISE = (
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.pow.Tensor_Scalar,
    aten.neg.default,
    aten.exp.default,
    aten.gelu.default,
    aten.relu.default,
    aten.silu.default,
    aten.sigmoid.default,
    aten.tanh.default,
)


@dataclass(frozen=True)
class Range:
    """Entries `start` to `stop` of the `size` entries along a dimension of a value.

    merged: the dimension holds the tokens of all images, `[N * size, ...]`; the range is that of each image.
    """

    dim: int
    size: int
    start: int
    stop: int
    merged: bool = False

    @property
    def length(self) -> int:
        """Number of entries."""
        return self.stop - self.start


def keep_needed_tokens(traced: fx.GraphModule) -> bool:
    """Rewrite a graph in place, so that it computes only what is selected from its values later.

    Args:
        traced: graph of ATen operators, whose nodes have the tracer's metadata.

    Returns:
        True if the graph has changed.
    """
    kept: dict[fx.Node, Range] = {}
    uses: dict[tuple[fx.Node, fx.Node], Range] = {}
    for node in reversed(traced.graph.nodes):
        of_users = {user: _used_range(node, user, kept) for user in node.users if not _is_number_of_images(user)}
        uses |= {(node, user): used for user, used in of_users.items() if used is not None}
        whole = _hull(of_users.values())
        if whole is not None and whole.length < whole.size and _ranges_of_inputs(node, whole):
            kept[node] = whole
    for (node, user), used in uses.items():
        if user in kept:
            _cut_input(node, user, used, kept.get(node))
        elif node in kept:
            _shift_selection(user, kept[node])
    for node, whole in kept.items():
        _set_length(node, whole)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return bool(kept)


def _is_number_of_images(node: fx.Node) -> bool:
    return node.target is aten.sym_size.int and isinstance(node.meta["val"], torch.SymInt)


def _used_range(node: fx.Node, user: fx.Node, kept: dict[fx.Node, Range]) -> Range | None:
    """Return the range that a user takes of a node's value; None if it takes all of it."""
    return _ranges_of_inputs(user, kept[user]).get(node) if user in kept else _selected(user)


def _selected(node: fx.Node) -> Range | None:
    """Return the range that a selection of fixed entries takes of its input; None for other nodes."""
    if node.target not in (aten.select.int, aten.slice.Tensor) or len(node.args) < (3 if node.target is aten.select.int else 4):
        return None
    inputs, dim, start, *rest = cast("tuple[Any, ...]", node.args)
    shape = _shape(inputs)
    size = shape[dim]
    if not isinstance(size, int) or len(rest) > 1:  # along the images, or with steps
        return None
    stop = start + 1 if node.target is aten.select.int else min(rest[0], size)
    return Range(dim % len(shape), size, start, stop) if 0 <= start < stop else None


def _hull(ranges: Iterable[Range | None]) -> Range | None:
    """Return the smallest range that holds all ranges; None if there is none, or if they are not ranges of one dimension."""
    found = list(ranges)
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found) or len({(one.dim, one.size, one.merged) for one in known}) > 1:
        return None
    return replace(known[0], start=min(one.start for one in known), stop=max(one.stop for one in known))


def _ranges_of_inputs(node: fx.Node, whole: Range) -> dict[fx.Node, Range]:
    """Return the range of each input that a range of the node's value depends on.

    Inputs on all of which it depends are left out. There are none for operators that mix the entries of the dimension, or are not known.
    """
    target, args = node.target, cast("tuple[Any, ...]", node.args)
    rank = len(_shape(node))
    if target in _ELEMENTWISE:
        return _ranges_of_operands(node, whole)
    if target is operator.getitem and args[1] == 0 and is_call(args[0], aten.native_layer_norm.default):
        return {args[0]: whole}
    if target is aten.native_layer_norm.default:
        return {args[0]: whole} if whole.dim < rank - len(args[1]) else {}
    if target is aten._softmax.default:
        return {args[0]: whole} if whole.dim != args[1] % rank else {}
    if target in (aten.mm.default, aten.bmm.default):
        sides = dict(zip((rank - 2, rank - 1), args, strict=True))  # rows of the first factor, columns of the second
        return {sides[whole.dim]: whole} if whole.dim in sides and args[0] is not args[1] else {}
    if target is aten.slice.Tensor:
        return {args[0]: whole} if whole.dim != args[1] % rank else {}
    if target is aten.transpose.int:
        first, second = args[1] % rank, args[2] % rank
        return {args[0]: replace(whole, dim={first: second, second: first}.get(whole.dim, whole.dim))} if not whole.merged else {}
    if target is aten.permute.default:
        return {args[0]: replace(whole, dim=args[1][whole.dim] % rank)} if not whole.merged else {}
    if target is aten.expand.default:
        return {args[0]: whole} if len(_shape(args[0])) == rank and _shape(args[0])[whole.dim] == whole.size else {}
    if target is aten.reshape.default:
        through = _range_before_reshape(_shape(args[0]), _shape(node), whole)
        return {} if through is None else {args[0]: through}
    return {}


def _ranges_of_operands(node: fx.Node, whole: Range) -> dict[fx.Node, Range]:
    """Return the ranges of the operands of an elementwise operator, except for those that are broadcast along the dimension."""
    found = {}
    for operand in node.all_input_nodes:
        dim = whole.dim - len(_shape(node)) + len(_shape(operand))
        if dim >= 0 and _shape(operand)[dim] == _shape(node)[whole.dim]:
            found[operand] = replace(whole, dim=dim)
    return found


def _range_before_reshape(before: list[Any], after: list[Any], whole: Range) -> Range | None:
    """Return the range of a reshape's input; None if the dimension is split or merged other than with the images."""
    dim = whole.dim
    if whole.merged:
        if before[0] == after[0]:
            return whole
        return (
            replace(whole, dim=1, merged=False)
            if len(before) > 1 and before[1] == whole.size and before[0] * before[1] == after[0]
            else None
        )
    if before[: dim + 1] == after[: dim + 1]:
        return whole
    behind = len(after) - dim
    if len(before) > behind and before[-behind:] == after[dim:]:
        return replace(whole, dim=len(before) - behind)
    if dim == 1 and before[0] == after[0] * after[1]:
        return replace(whole, dim=0, merged=True)
    return None


def _cut_input(node: fx.Node, user: fx.Node, used: Range, whole: Range | None) -> None:
    """Let a user, of whose value only a range remains, take its range of a node, of whose value the range `whole` remains."""
    if used == whole:
        return
    size, offset = (used.size, 0) if whole is None else (whole.length, whole.start)
    graph = user.graph
    with graph.inserting_before(user):
        dim, inputs = used.dim, node
        if used.merged:
            columns = _shape(node)[1:]
            inputs, dim = graph.call_function(aten.reshape.default, (node, [-1, size, *columns])), 1
        cut = graph.call_function(aten.slice.Tensor, (inputs, dim, used.start - offset, used.stop - offset))
        if used.merged:
            cut = graph.call_function(aten.reshape.default, (cut, [-1, *columns]))
    user.replace_input_with(node, cut)


def _shift_selection(node: fx.Node, whole: Range) -> None:
    """Let a selection count from the start of the range that remains of its input."""
    inputs, dim, *bounds = cast("tuple[Any, ...]", node.args)
    if node.target is aten.slice.Tensor:
        bounds[1] = min(bounds[1], whole.size)
    node.args = (inputs, dim, *(bound - whole.start for bound in bounds))


def _set_length(node: fx.Node, whole: Range) -> None:
    """Change the sizes that a reshape or an expansion names to those of the range that remains."""
    if node.target in (aten.reshape.default, aten.expand.default):
        inputs, sizes, *others = cast("tuple[Any, ...]", node.args)
        sizes = [known if size == -1 and isinstance(known, int) else size for size, known in zip(sizes, _shape(node), strict=True)]
        sizes[whole.dim] = -1 if whole.merged else whole.length
        node.args = (inputs, sizes, *others)


def _shape(node: fx.Node) -> list[Any]:
    """Return the shape of a node's value, of its first value if there are several: numbers, and expressions for dynamic sizes."""
    value = node.meta["val"]
    first: Tensor = value[0] if isinstance(value, tuple | list) else value
    return [size.node.expr if isinstance(size, torch.SymInt) else int(size) for size in first.shape]
