"""Decomposition of an exported program's operators one by one, instead of by tracing the whole program again.

`torch.onnx.export` decomposes the operators that it has no ONNX function for, and turns operations in place into others, by tracing the
program twice more, which takes almost half of the time of an export. Few operators need it. This module rewrites their nodes.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram

aten = torch.ops.aten

Rewrite = Callable[[fx.Node], None]
"""Function that turns a node into one with an operator that ONNX has, with the same name and value."""


class _NeedsTracingError(Exception):
    """Raised if the nodes of a program cannot be rewritten one by one."""


@contextmanager
def decomposed_by_nodes() -> Iterator[list[ExportedProgram]]:
    """Let `torch.onnx.export` decompose programs with `decompose`. Those for which this is impossible are traced again.

    Yields:
        The programs that `decompose` has changed.
    """
    trace_again = ExportedProgram.run_decompositions
    changed: list[ExportedProgram] = []

    def run_decompositions(program: ExportedProgram, decomp_table: Any = None, **more: Any) -> ExportedProgram:
        if not decompose(program, decomp_table or {}):
            traced: ExportedProgram = trace_again(program, decomp_table, **more)
            return traced
        changed.append(program)
        return program

    with mock.patch.object(ExportedProgram, "run_decompositions", run_decompositions):
        yield changed


def decompose(program: ExportedProgram, table: Mapping[Any, object]) -> bool:
    """Decompose the operators in `table`, and turn operations in place into others.

    Returns:
        False if the program is unchanged, because an operator needs it that is not in `REWRITES`, or because an operation in place changes
        a view.
    """
    nodes = list(program.graph.nodes)
    try:
        rewrites = [(node, rewrite) for node in nodes if (rewrite := _rewrite_of(node, table)) is not None]
        writes = _find_writes(nodes, table)
    except _NeedsTracingError:
        return False
    for node, later_users in writes.items():
        node.args[0].replace_all_uses_with(node, delete_user_cb=later_users.__contains__)  # type: ignore[union-attr]
        node.target = _without_write(node.target)  # type: ignore[assignment]
    for node, rewrite in rewrites:
        rewrite(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return True


def _rewrite_of(node: fx.Node, table: Mapping[Any, object]) -> Rewrite | None:
    """Return the function that rewrites a node, or None if its operator stays.

    Raises:
        _NeedsTracingError: the operator is to be decomposed, but not in `REWRITES`.
    """
    if isinstance(node.target, HigherOrderOperator):
        raise _NeedsTracingError
    if not isinstance(node.target, OpOverload) or node.target in _KEPT or _without_write(node.target) is not None:
        return None
    if node.target not in table and not _is_always_decomposed(node.target):
        return None
    if node.target not in REWRITES or _trains(node):
        raise _NeedsTracingError
    return REWRITES[node.target]


_TRAINING: dict[Any, int] = {aten.dropout.default: 2, aten.batch_norm.default: 5}
"""Position of the argument that says whether the network is trained."""


def _trains(node: fx.Node) -> bool:
    """Return True for a dropout or a batch norm in training mode."""
    place = _TRAINING.get(node.target)
    return place is not None and bool(node.args[place])


@functools.cache
def _is_always_decomposed(target: OpOverload) -> bool:
    """Return True for operators that consist of others, and that PyTorch does not let a table of decompositions keep."""
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
    return composite and target not in torch.export.default_decompositions()


@functools.cache
def _without_write(target: object) -> OpOverload | None:
    """Return the operator that computes what `target` writes into its first argument, such as `relu` for `relu_`; None if there is none."""
    if not isinstance(target, OpOverload) or not target._schema.is_mutable:
        return None
    first, *others = target._schema.arguments
    packet = getattr(aten, target._schema.name.removeprefix("aten::").removesuffix("_"), None)
    if not target._schema.name.endswith("_") or first.alias_info is None or any(one.alias_info is not None for one in others):
        return None
    return getattr(packet, target._overloadname, None)


def _find_writes(nodes: list[fx.Node], table: Mapping[Any, object]) -> dict[fx.Node, set[fx.Node]]:
    """Find the operations in place, each with the later users of the tensor that it writes into.

    Raises:
        _NeedsTracingError: an operation writes into an input, a tensor of which a view is used later, or a view of one that is used later;
            or the operator that is not in place has another type, or is to be decomposed itself.
    """
    order = {node: number for number, node in enumerate(nodes)}
    owners: dict[fx.Node, fx.Node] = {}
    sharing: dict[fx.Node, list[fx.Node]] = {}
    writes: dict[fx.Node, set[fx.Node]] = {}
    for node in nodes:
        source = node.args[0] if node.args and _shares_memory(node) else None
        owners[node] = owners[source] if isinstance(source, fx.Node) else node
        sharing.setdefault(owners[node], []).append(node)
        if not (isinstance(node.target, OpOverload) and node.target._schema.is_mutable):
            continue
        written, plain = node.args[0], _without_write(node.target)
        if plain is None or plain in table or _is_always_decomposed(plain) or len(_types(node)) > 1:
            raise _NeedsTracingError
        if not isinstance(written, fx.Node) or written.op != "call_function":
            raise _NeedsTracingError
        if any(order[user] > order[node] for other in sharing[owners[written]] if other not in (written, node) for user in other.users):
            raise _NeedsTracingError
        writes[node] = {user for user in written.users if order[user] > order[node]}
        owners[node] = node  # its result is a tensor of its own once it is not in place
        sharing[node] = [node]
    return writes


def _types(node: fx.Node) -> set[torch.dtype]:
    """Return the types of the tensors that a node takes."""
    return {value.dtype for one in node.all_input_nodes if isinstance(value := one.meta.get("val"), torch.Tensor)}


def _shares_memory(node: fx.Node) -> bool:
    """Return True if the result may be a view of the first argument, or the argument itself."""
    if node.target is operator.getitem or node.target is aten.dropout.default:
        return True
    return isinstance(node.target, OpOverload) and any(one.alias_info is not None for one in node.target._schema.returns)


def _insert(before: fx.Node, target: OpOverload, *args: Any, **kwargs: Any) -> fx.Node:
    """Insert a node before another one, with the value that the exporter takes its type and shape from."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, args, kwargs)
    node.meta = {name: value for name, value in before.meta.items() if name != "val"}
    values, named = fx.map_arg((args, kwargs), lambda one: one.meta["val"])
    with before.meta["val"].fake_mode:
        node.meta["val"] = target(*values, **named)
    return node


def _become(node: fx.Node, target: Any, *args: Any, **kwargs: Any) -> None:
    node.target, node.args, node.kwargs = target, args, kwargs


def _batch_norm(node: fx.Node) -> None:
    inputs, weight, bias, mean, variance, _, momentum, epsilon, _ = node.args
    found = _insert(node, aten._native_batch_norm_legit_no_training.default, inputs, weight, bias, mean, variance, momentum, epsilon)
    _become(node, operator.getitem, found, 0)


def _conversion(node: fx.Node) -> None:
    _become(node, aten._to_copy.default, node.args[0], dtype=node.args[1])


def _same(node: fx.Node) -> None:
    _become(node, aten.clone.default, node.args[0], memory_format=torch.contiguous_format)


def _reversed_subtraction(node: fx.Node) -> None:
    inputs, minuend = node.args[:2]
    _become(node, aten.sub.Tensor, minuend, inputs, **{"alpha": node.args[2]} if len(node.args) > 2 else {})


def _safe_softmax(node: fx.Node) -> None:
    """Compute the softmax, and zeros in rows of minus infinity."""
    scores, dim = node.args[:2]
    shares = _insert(node, aten.softmax.int, scores, dim, *node.args[2:])
    masked = _insert(node, aten.all.dim, _insert(node, aten.eq.Scalar, scores, float("-inf")), dim, True)
    _become(node, aten.where.self, masked, _insert(node, aten.zeros_like.default, shares), shares)


_KEPT = {aten.reshape.default, aten.flatten.using_ints, aten.expand_as.default, aten.upsample_bilinear2d.vec}
"""Operators that PyTorch always decomposes when it traces a program again, although its exporter has an ONNX function for them."""

REWRITES: dict[OpOverload, Rewrite] = {
    aten.batch_norm.default: _batch_norm,
    aten.to.dtype: _conversion,
    aten.contiguous.default: _same,
    aten.dropout.default: _same,
    aten.rsub.Scalar: _reversed_subtraction,
    aten._safe_softmax.default: _safe_softmax,
}
