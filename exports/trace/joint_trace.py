"""Tracing of a network's tail together with its gradient into one graph of plain operators, the joint graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from tlcli.exports.trace.decompositions import DECOMPOSITIONS
from tlcli.exports.trace.graph_nodes import number_of_images
from tlcli.exports.trace.needed_tokens import keep_needed_tokens
from tlcli.exports.trace.simplify_graph import StridedWriteError, simplify
from tlcli.training.models.target_layers import Tap

_BATCH_SIZES = (37, 41, 43, 47, 53, 59, 61)
"""Candidate batch sizes for tracing. The first one that differs from all other sizes is used, because the tracer gives equal sizes the
same symbol."""

TailFunction = Callable[[Tensor, Tap], Tensor]
"""Part of a network to trace. It receives its input `[N, ...]` and a tap for the layers' outputs, and returns the embedding z `[N, d]`."""

Transform = Callable[[Callable[..., Any]], Callable[..., Any]]


def trace_joint(
    function: TailFunction, example: Tensor, layers: Sequence[str], dynamic_size: bool, selects_tokens: bool = False
) -> fx.GraphModule:
    """Trace the function `(input, cotangent of z) -> (z, *activations, *gradients)`.

    For the arguments see `tlcli.exports.trace.vjp.TracedTail`.
    """
    with torch.no_grad():
        width = function(example[None], lambda _, output: output).shape[1]
    if selects_tokens and (traced := _trace_restricted(function, example, width, layers, dynamic_size)) is not None:
        return traced
    examples = _symbolic_examples(example, width, dynamic_size)
    try:
        # Functionalize after differentiation if possible, because this leaves fewer changes of memory order.
        return _trace(_functional(JointTrace(function, layers)), examples)
    except StridedWriteError:
        return _trace(JointTrace(function, layers, torch.func.functionalize), examples)


class JointTrace:
    """Function that runs a tail forward and backward, to be recorded by a tracer.

    Zeros are added to each layer's output, and the gradient with respect to them is the gradient with respect to the layer's activations.
    """

    def __init__(
        self,
        function: TailFunction,
        layers: Sequence[str],
        transform: Transform = lambda function: function,
        forward: Callable[..., tuple[Tensor, ...]] | None = None,
    ) -> None:
        """Store the function and the layer names.

        Args:
            function: tail to trace; see `TailFunction`.
            layers: names that `function` passes to its tap, each exactly once.
            transform: transform that is applied to the function before it is differentiated.
            forward: function to differentiate instead of `shift`, with the same results.
        """
        self._function = function
        self._layers = layers
        self._transform = transform
        self._forward = self.shift if forward is None else forward

    def __call__(self, inputs: Tensor, cotangent: Tensor) -> tuple[Any, ...]:
        """Return z, followed by each layer's activations and each layer's vector-Jacobian product."""
        with _TraceableFunctions():
            with torch.no_grad():
                zeros = self._transform(self.probe)(inputs)

            def shifted(*shifts: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
                z, *activations = self._transform(self._forward)(inputs, *shifts)
                return z, tuple(activations)

            z, pull_back, activations = cast("tuple[Any, Any, Any]", torch.func.vjp(shifted, *zeros, has_aux=True))
            return z, *activations, *pull_back(cotangent)

    def probe(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return a tensor of zeros for each layer, in the shape of the layer's output."""
        zeros: dict[str, Tensor] = {}

        def tap(name: str, output: Tensor) -> Tensor:
            zeros[name] = torch.zeros_like(output)
            return output.clone()  # later layers may work in place

        self._function(inputs.clone(), tap)
        return tuple(zeros[name] for name in self._layers)

    def shift(self, inputs: Tensor, *shifts: Tensor) -> tuple[Tensor, ...]:
        """Return z and the layers' activations after adding a shift to each layer's output."""
        activations: dict[str, Tensor] = {}

        def tap(name: str, output: Tensor) -> Tensor:
            output = output + shifts[self._layers.index(name)]
            activations[name] = output.clone()  # later layers may work in place
            return output

        z = self._function(inputs.clone(), tap)
        return z, *(activations[name] for name in self._layers)


def _trace_restricted(
    function: TailFunction, example: Tensor, width: int, layers: Sequence[str], dynamic_size: bool
) -> fx.GraphModule | None:
    """Trace the joint graph of a tail that is restricted to the tokens on which z depends.

    The forward pass is traced first, and restricted.

    Returns:
        None if z depends on all tokens, or if tracing in two steps fixes the number of images.
    """
    inputs, _ = _symbolic_examples(example, width, dynamic_size)
    joint = JointTrace(function, layers)

    def forward(inputs: Tensor, *shifts: Tensor) -> tuple[Tensor, ...]:
        with _TraceableFunctions():
            return joint.shift(inputs, *shifts)

    try:
        with torch.no_grad(), inputs.fake_mode, _TraceableFunctions():
            zeros = joint.probe(inputs)
        restricted = make_fx(_functional(forward), tracing_mode="symbolic")(inputs, *zeros)
        simplify(restricted)
        if _fixes_number_of_images(restricted) or not keep_needed_tokens(restricted):
            return None
        traced = _trace(_functional(JointTrace(function, layers, forward=restricted)), _symbolic_examples(example, width, dynamic_size))
    except StridedWriteError:
        return None
    return None if _fixes_number_of_images(traced) else traced


def _functional(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.func.functionalize(function, remove="mutations_and_views")


def _fixes_number_of_images(traced: fx.GraphModule) -> bool:
    return number_of_images(next(iter(traced.graph.nodes))) is None


def _trace(joint: Callable[[Tensor, Tensor], tuple[Any, ...]], examples: tuple[Tensor, Tensor]) -> fx.GraphModule:
    traced = make_fx(joint, decomposition_table=DECOMPOSITIONS, tracing_mode="symbolic")(*examples)
    simplify(traced)
    return traced


class _TraceableFunctions(TorchFunctionMode):
    """Mode that replaces functions with equivalents that can be traced and differentiated."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is functional.linear and args[0].ndim > 2:  # PyTorch's own implementation fixes the traced sizes
            return _linear(*args, **(kwargs or {}))
        if function is Tensor.__setitem__:  # a copy into a slice loses its derivative when it is functionalized
            inputs, index, value = args
            value = value.clone() if isinstance(value, Tensor) else value  # it may be the slice itself
            inputs[index].zero_().add_(value)
            return None
        if function is functional.scaled_dot_product_attention and _is_plain(*args, **(kwargs or {})):
            return _attention(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a linear layer to an input of more than two dimensions.

    The bias is added to the product's rows, so that ONNX Runtime adds it within the product.
    """
    product = inputs.reshape(-1, inputs.shape[-1]) @ weight.t()
    return (product if bias is None else product + bias).reshape(*inputs.shape[:-1], weight.shape[0])


def _is_plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> bool:
    """Return True for attention without a mask and without dropout."""
    return attn_mask is None and dropout_p == 0 and not is_causal and not enable_gqa


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: object, scale: float | None = None, **__: object) -> Tensor:
    """Compute attention without a mask.

    PyTorch's own implementation scales the keys too, and compares all scores with minus infinity, which only a mask can cause.
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    return (query * factor @ key.transpose(-2, -1)).softmax(-1) @ value


def _symbolic_examples(example: Tensor, width: int, dynamic_size: bool) -> tuple[FakeTensor, FakeTensor]:
    """Create fake inputs `[N, ...]` and cotangents `[N, width]` for the tracer, with N as a symbol and numbers for all other sizes.

    With `dynamic_size`, the last two dimensions of the inputs are also symbols.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    batch, fixed, last = DimDynamic.DUCK, DimDynamic.STATIC, DimDynamic.DYNAMIC if dynamic_size else DimDynamic.STATIC
    last_two = [last] * min(2, example.ndim - 1)
    rows = next(size for size in _BATCH_SIZES if size not in (*example.shape, width))
    # Copy into row-major order: with channels-last inputs, the tracer would write strides into the graph.
    inputs = example.expand(rows, *[-1] * example.ndim).contiguous()
    sizes = [batch, *[fixed] * (example.ndim - len(last_two)), *last_two]
    return (
        mode.from_tensor(inputs, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes)),
        mode.from_tensor(torch.ones(rows, width), symbolic_context=StatelessSymbolicContext(dynamic_sizes=[batch, fixed])),
    )
