"""What follows the explained layers, and its gradient without autograd: traced once, cut into graphs of plain operators.

A class activation map needs dy/dA, the derivative of a class's score y with respect to the activations A of a layer. That is
a vector-Jacobian product. It is traced here into ordinary operators, so that exporting it needs no autograd, and cut: what
does not depend on the class runs once an image, what does depend on it runs once a class.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from tlcli.exports.trace.decompositions import DECOMPOSITIONS, covers
from tlcli.exports.trace.target_layers import Tap

aten = torch.ops.aten

_ROWS = (37, 41, 43, 47, 53, 59, 61)
"""Of the batch that is traced: one that no other size equals, since the tracer takes sizes that it finds equal for one and the same."""

Rest = Callable[[Tensor, Tap], Tensor]
"""The traced part of a network: its input, `[N, ...]`, and what stands at the layers, to the embedding z, `[N, d]`."""


class Tail(nn.Module):
    """A function `[N, ...] -> z [N, d]` with layers in it, as graphs.

    forward: the input to z, the layers' activations, and what the other two need to remember of it (masks, sizes).
    pull_back: weights of z to the derivative of its weighted sum with respect to each layer's activations.
    again: one layer's activations, changed, to z.
    """

    def __init__(self, rest: Rest, example: Tensor, layers: Sequence[str], dynamic_size: bool = False) -> None:
        """Trace `rest`.

        Args:
            rest: differentiable; every image independent of the others in its batch.
            example: an input of one image, without the batch's dimension.
            layers: names that `rest` gives to its tap, each once.
            dynamic_size: keep the example's last two dimensions open, beside the batch's.

        Raises:
            NotImplementedError, RuntimeError, TypeError: there is an operator that cannot be traced or differentiated.
        """
        super().__init__()
        with torch.no_grad():
            width = rest(example[None], lambda _, output: output).shape[1]
        mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        examples = _symbolic(mode, example, width, dynamic_size)
        try:
            traced = _trace(torch.func.functionalize(_joint(rest, layers), remove="mutations_and_views"), examples)
        except (
            _WrittenIntoAPartError
        ):  # made functional before it is differentiated; else after, which leaves fewer changes of memory order
            traced = _trace(_joint(rest, layers, torch.func.functionalize), examples)
        self._quick = _add_quick_means(traced, len(layers))
        cut = _Cut(traced, len(layers))
        self.forward_graph, self.backward_graph = cut.forward(), cut.backward()
        self.again_graphs = nn.ModuleList(cut.again(number) for number in range(len(layers)))
        self._handed = [[cut.remembered.index(node) for node in handed] for handed in cut.handed]
        self._rows = [_rows_a_image(node, cut.batch) for node in cut.remembered]
        self.layers = tuple(layers)

    def forward(self, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...], tuple[Any, ...]]:
        """`[N, ...]` to z `[N, d]`, activations `[N, c, h, w]` a layer, and what the other graphs need."""
        z, *others = self.forward_graph(inputs)
        return z, tuple(others[: len(self.layers)]), tuple(others[len(self.layers) :])

    def pull_back(self, cotangents: Tensor, remembered: tuple[Any, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Weights of z, `[N, K, d]`, to the derivatives of its weighted sum, `[N, K, c, h, w]` a layer, and their spatial means."""
        n, k, _ = cotangents.shape
        handed = [_repeat(remembered[i], k, self._rows[i]) if self._rows[i] else remembered[i] for i in self._handed[-1]]
        results = [result.unflatten(0, (n, k)) for result in self.backward_graph(cotangents.flatten(0, 1), *handed)]
        gradients, quick = results[: len(self.layers)], iter(results[len(self.layers) :])
        return tuple(gradients), tuple(next(quick) if has else one.mean((-2, -1)) for has, one in zip(self._quick, gradients, strict=True))

    def again(self, layer: int, activations: Tensor, images: Tensor, remembered: tuple[Any, ...]) -> Tensor:
        """z for other activations of one layer.

        Args:
            layer: its number.
            activations: `[R, c, h, w]`.
            images: int64 `[R]`, which of the N images each belongs to.
            remembered: from `forward`.
        """
        handed = [_choose(remembered[i], images, self._rows[i]) if self._rows[i] else remembered[i] for i in self._handed[layer]]
        return cast("Tensor", self.again_graphs[layer](activations, *handed)[0])


class _WrittenIntoAPartError(NotImplementedError):
    """Its gradient is traced as strides, which ONNX does not have: better no graph than a wrong one."""


def _trace(joint: Callable[[Tensor, Tensor], tuple[Any, ...]], examples: tuple[Tensor, Tensor]) -> fx.GraphModule:
    traced = make_fx(joint, decomposition_table=DECOMPOSITIONS, tracing_mode="symbolic")(*examples)
    _simplify(traced)
    return traced


def _joint(
    rest: Rest, layers: Sequence[str], transform: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function
) -> Callable[[Tensor, Tensor], tuple[Any, ...]]:
    """`(input, cotangent of z) -> (z, *activations, *gradients)`: a vjp with respect to zeros that are added to the layers.

    Args:
        rest, layers: see `Tail`.
        transform: of the function that is differentiated.
    """

    def joint(inputs: Tensor, cotangent: Tensor) -> tuple[Any, ...]:
        with _PlainFunctions():
            return traced(inputs, cotangent)

    def traced(inputs: Tensor, cotangent: Tensor) -> tuple[Any, ...]:
        def measured(inputs: Tensor) -> tuple[Tensor, ...]:
            blank: dict[str, Tensor] = {}

            def measure(name: str, output: Tensor) -> Tensor:
                blank[name] = torch.zeros_like(output)
                return output.clone()  # what follows may work in place

            rest(inputs.clone(), measure)
            return tuple(blank[name] for name in layers)

        with torch.no_grad():
            blank = transform(measured)(inputs)

        def shifted(*shifts: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            z, *seen = transform(observed)(inputs, *shifts)
            return z, tuple(seen)

        def observed(inputs: Tensor, *shifts: Tensor) -> tuple[Tensor, ...]:
            seen: dict[str, Tensor] = {}

            def shift(name: str, output: Tensor) -> Tensor:
                output = output + shifts[layers.index(name)]
                seen[name] = output.clone()  # what follows may work in place
                return output

            z = rest(inputs.clone(), shift)
            return z, *(seen[name] for name in layers)

        z, pull_back, *rest_of_it = torch.func.vjp(shifted, *blank, has_aux=True)
        return z, *rest_of_it[0], *pull_back(cotangent)

    return joint


class _PlainFunctions(TorchFunctionMode):
    """Functions in words that can be traced and differentiated."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is functional.linear and args[0].ndim > 2:  # PyTorch's own way fixes the sizes that are traced
            return _product_of_matrices(*args, **(kwargs or {}))
        if function is Tensor.__setitem__:  # what is copied into a part of a tensor has no derivative once it is made functional
            inputs, index, value = args
            value = value.clone() if isinstance(value, Tensor) else value  # it may be the part itself
            inputs[index].zero_().add_(value)
            return None
        return function(*args, **(kwargs or {}))


def _product_of_matrices(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer over more than two dimensions."""
    product = inputs.reshape(-1, inputs.shape[-1]) @ weight.t()
    product = product.reshape(*inputs.shape[:-1], weight.shape[0])
    return product if bias is None else product + bias


def _symbolic(mode: FakeTensorMode, example: Tensor, width: int, dynamic_size: bool) -> tuple[Tensor, Tensor]:
    """A batch of examples and of cotangents `[N, width]`, for the tracer: N is a symbol, the other sizes are numbers."""
    batch, number, other = DimDynamic.DUCK, DimDynamic.STATIC, DimDynamic.DYNAMIC if dynamic_size else DimDynamic.STATIC
    last = [other] * min(2, example.ndim - 1)
    # Copied into row-major order: in channels-last order the tracer would write strides into the graph.
    rows = next(number for number in _ROWS if number not in (*example.shape, width))
    inputs = example.expand(rows, *[-1] * example.ndim).contiguous()
    kinds = [batch, *[number] * (example.ndim - len(last)), *last]
    return (
        mode.from_tensor(inputs, symbolic_context=StatelessSymbolicContext(dynamic_sizes=kinds)),
        mode.from_tensor(torch.ones(rows, width), symbolic_context=StatelessSymbolicContext(dynamic_sizes=[batch, number])),
    )


def _simplify(traced: fx.GraphModule) -> None:
    """Take out the zeros that were added and the copies, let views be views again, as nothing is written to any more, and say
    products with weights in one way, so that those of the forward and the backward pass are found to share a weight."""
    graph = traced.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if "as_strided" in str(node.target):
            raise _WrittenIntoAPartError("something is written into a part of a tensor")
        if node.target in (aten.view_copy.default, aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default  # of any memory order
        elif isinstance(node.target, torch._ops.OpOverload) and (name := node.target._opname).endswith("_copy"):
            view = getattr(aten, name.removesuffix("_copy"), None)  # there is none for `_to_copy`, which converts
            node.target = getattr(view, node.target._overloadname, node.target)
        if node.target in (aten.clone.default, aten.lift_fresh.default, aten.detach.default, aten.detach_.default) or (
            node.target is aten.add.Tensor
            and _is_call(node.args[1], aten.zeros_like.default)
            and _shape(node.args[1]) == _shape(node.args[0])
        ):
            node.replace_all_uses_with(node.args[0])
        elif node.target is aten.t.default and _is_call(node.args[0], aten.t.default):
            node.replace_all_uses_with(node.args[0].args[0])
        elif node.target is aten.addmm.default and _is_call(node.args[2], aten.t.default) and not node.kwargs:
            bias, inputs, transposed = node.args
            with graph.inserting_before(node):
                _replace(node, aten.linear.default, (inputs, transposed.args[0], bias))
        elif node.target is aten.convolution.default and not node.args[6] and _covers(node):
            inputs, weight, bias = node.args[:3]
            with graph.inserting_before(node):
                flat = graph.call_function(aten.flatten.using_ints, (inputs, 1))
                rows = graph.call_function(aten.linear.default, (flat, _flat_weight(traced, weight), bias))
                for new, like in ((flat, inputs), (rows, node)):
                    new.meta["val"] = like.meta["val"].flatten(1)
                _replace(node, aten.reshape.default, (rows, [-1, node.meta["val"].shape[1], 1, 1]))
        elif node.target in (aten.view.default, aten.reshape.default) and _is_weight(node.args[0]) and _flattens(node):
            with graph.inserting_before(node):
                node.replace_all_uses_with(_flat_weight(traced, node.args[0]))
    graph.eliminate_dead_code()


def _add_quick_means(traced: fx.GraphModule, layers: int) -> list[bool]:
    """Append the spatial means of those gradients to the joint graph's outputs that need not be known for it; says of which.

    Where the last step back is a product with a matrix, as with VGG's fc6 or the first layer of a hidden head, the mean is one with the
    matrix's own means over the positions, which is so many times smaller.
    """
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    results = cast("tuple[Any, ...]", output.args[0])
    means, quick = [], []
    for gradient in results[len(results) - layers :]:
        _, channels, height, width = gradient.meta["val"].shape
        product: Any = gradient.args[0] if gradient.target in (aten.view.default, aten.reshape.default) else None
        sizes_are_known = isinstance(height, int) and isinstance(width, int)
        quick.append(sizes_are_known and _is_call(product, aten.mm.default) and _is_weight(product.args[1]))
        if quick[-1]:
            rows, weight = product.args
            name = f"{weight.target}_mean"
            value = getattr(traced, str(weight.target)).detach().unflatten(1, (channels, height * width)).mean(-1)
            traced.register_parameter(name, nn.Parameter(value, requires_grad=False))
            with traced.graph.inserting_before(output):
                means.append(traced.graph.call_function(aten.mm.default, (rows, traced.graph.get_attr(name))))
            means[-1].meta["val"] = gradient.meta["val"].flatten(2)[..., 0]
    output.args = ((*results, *means),)
    return quick


def _is_call(node: Any, target: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is target


def _is_weight(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr"


def _flattens(view: fx.Node) -> bool:
    """Whether it makes a matrix, a row an output, of a weight."""
    weight, shape = cast("tuple[Any, ...]", view.args)
    return len(shape) == 2 and list(shape) == list(weight.meta["val"].flatten(1).shape)


def _covers(convolution: fx.Node) -> bool:
    inputs, weight, _, _, padding, dilation, _, _, groups = cast("tuple[Any, ...]", convolution.args)
    return _is_weight(weight) and covers(_shape(inputs), _shape(weight), padding, dilation, groups)


def _flat_weight(traced: fx.GraphModule, weight: fx.Node) -> fx.Node:
    """The weight as a matrix, a row an output: the same memory, as an attribute of its own. Inserted where `traced.graph` stands."""
    name = f"{weight.target}_flat"
    if not hasattr(traced, name):
        value = getattr(traced, str(weight.target)).detach().flatten(1)
        traced.register_parameter(name, nn.Parameter(value, requires_grad=False))
    node = traced.graph.get_attr(name)
    node.meta["val"] = weight.meta["val"].flatten(1)
    return node


def _replace(node: fx.Node, target: Any, arguments: tuple[Any, ...]) -> None:
    new = node.graph.call_function(target, arguments)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)


class _Cut:
    """The joint graph taken apart.

    remembered: values of the forward graph that another graph needs.
    handed: of those, what each layer's `again` graph takes, and last what the backward graph takes.
    """

    def __init__(self, traced: fx.GraphModule, layers: int) -> None:
        self.traced = traced
        self._inputs, self._cotangent = (node for node in traced.graph.nodes if node.op == "placeholder")
        (output,) = (node for node in traced.graph.nodes if node.op == "output")
        self._z, *others = output.args[0]
        self._activations, self._gradients_and_means = others[:layers], others[layers:]
        batch = self._inputs.meta["val"].shape[0]
        if not isinstance(batch, torch.SymInt) or batch.node.expr.is_number:
            raise NotImplementedError("an operator fixes the number of images")
        self.batch = batch.node.expr
        # Sizes that grow with the batch, and constants of such sizes, are computed anew in each graph from its own first input.
        seen = _behind(traced.graph, self._inputs, through_sizes=False)
        self._after = [_behind(traced.graph, activation) - {activation} for activation in self._activations]
        # With those gradients that are zeros whatever the cotangent is.
        self._after_cotangent = (_behind(traced.graph, self._cotangent) - {self._cotangent}) | set(self._gradients_and_means)
        self._anew = {
            node
            for node in traced.graph.nodes
            if _grows_with(node, self.batch) and node not in seen | self._after_cotangent and node is not self._cotangent
        }
        starts = [*self._activations, self._cotangent]
        computed = [*(after - self._after_cotangent for after in self._after), self._after_cotangent]
        self.handed = [self._taken(start, within) for start, within in zip(starts, computed, strict=True)]
        for handed, within in zip(self.handed[:-1], computed[:-1], strict=True):
            if self._z not in within and self._z not in handed:
                handed.append(self._z)  # the layer does not reach it
        self._computed = computed
        self.remembered = list(dict.fromkeys(itertools.chain.from_iterable(self.handed)))

    def forward(self) -> fx.GraphModule:
        nodes = (node for node in self.traced.graph.nodes if node not in self._after_cotangent and node.op != "output")
        graph = fx.Graph()
        copies = _copy((node for node in nodes if node is not self._cotangent), graph, {})
        graph.output(tuple(copies[node] for node in (self._z, *self._activations, *self.remembered)))
        return self._module(graph)

    def backward(self) -> fx.GraphModule:
        return self._part(self._cotangent, self._after_cotangent, self.handed[-1], self._gradients_and_means)

    def again(self, layer: int) -> fx.GraphModule:
        return self._part(self._activations[layer], self._computed[layer], self.handed[layer], [self._z])

    def _taken(self, start: fx.Node, within: set[fx.Node]) -> list[fx.Node]:
        computed = within | self._anew
        taken: dict[fx.Node, None] = {}
        for node in self.traced.graph.nodes:
            if node in computed and not _is(node, self.batch):
                taken |= {v: None for v in node.all_input_nodes if v is not start and v not in computed and v.op != "get_attr"}
        return list(taken)

    def _part(self, start: fx.Node, within: set[fx.Node], handed: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> fx.GraphModule:
        graph = fx.Graph()
        environment: dict[fx.Node, fx.Node] = {}
        for number, node in enumerate((start, *handed)):
            environment[node] = graph.placeholder(f"input_{number}")
            environment[node].meta = dict(node.meta)
        rows = graph.call_function(torch.ops.aten.sym_size.int, (environment[start], 0))
        for node in self.traced.graph.nodes:
            if _is(node, self.batch):
                environment[node] = rows
        nodes = (n for n in self.traced.graph.nodes if n not in environment and (n in within | self._anew or n.op == "get_attr"))
        copies = _copy(nodes, graph, environment)
        graph.output(tuple(copies[node] for node in outputs))
        return self._module(graph)

    def _module(self, graph: fx.Graph) -> fx.GraphModule:
        graph.eliminate_dead_code()
        return fx.GraphModule(self.traced, graph)


def _behind(graph: fx.Graph, start: fx.Node, through_sizes: bool = True) -> set[fx.Node]:
    """`start` and what is computed from it; unless `through_sizes`, what depends on its sizes alone is left out."""
    found = {start}
    for node in graph.nodes:
        if not found.isdisjoint(node.all_input_nodes) and (through_sizes or not isinstance(node.meta.get("val"), torch.SymInt)):
            found.add(node)
    return {node for node in found if node.op != "output"}


def _copy(nodes: Iterable[fx.Node], graph: fx.Graph, environment: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    copies = dict(environment)
    for node in nodes:
        copies[node] = graph.node_copy(node, lambda value: copies[value])
    return copies


def _repeat(value: Tensor, times: Any, rows: int) -> Tensor:
    """`[N * rows, ...]` to `[N * times * rows, ...]`, each image's rows `times` times in a row."""
    images = value.reshape(-1, 1, rows, *value.shape[1:])
    return images.expand(-1, times, *([-1] * value.ndim)).flatten(0, 2)


def _choose(value: Tensor, images: Tensor, rows: int) -> Tensor:
    """`[N * rows, ...]` to `[R * rows, ...]`, the rows of the images that are named."""
    return value.reshape(-1, rows, *value.shape[1:]).index_select(0, images).flatten(0, 1)


def _shape(node: fx.Node) -> list[Any]:
    return [*node.meta["val"].shape]


def _is(node: fx.Node, size: Any) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.SymInt) and value.node.expr == size


def _grows_with(node: fx.Node, size: Any) -> bool:
    value = node.meta.get("val")
    sizes = value.shape if isinstance(value, Tensor) else [value]
    return any(_contains(one, size) for one in sizes)


def _rows_a_image(node: fx.Node, batch: Any) -> int:
    """How many rows an image a value has; 0 for those that do not grow with the batch.

    Raises:
        NotImplementedError: it grows with the batch in another way.
    """
    if not _grows_with(node, batch):
        return 0
    first, *others = node.meta["val"].shape
    rows = first.node.expr / batch if isinstance(first, torch.SymInt) else None
    if rows is None or not rows.is_integer or not rows.is_number or any(_contains(one, batch) for one in others):
        raise NotImplementedError(f"{node.name} of shape {list(node.meta['val'].shape)} has no rows of its own for each image")
    return int(rows)


def _contains(value: Any, size: Any) -> bool:
    return isinstance(value, torch.SymInt) and size in value.node.expr.free_symbols
