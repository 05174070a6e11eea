"""Gradient rules of elementwise operators: activation functions, arithmetic with broadcasting, and selection.

The derivative of an activation function is computed once per image, and multiplied with the gradient of each class.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tlcli.exports.onnx_source.gradients.class_rows import Factor
from tlcli.exports.onnx_source.gradients.gradient_flow import Rule, Step
from tlcli.exports.onnx_source.graph.extents import Extent
from tlcli.exports.onnx_source.graph.node_writer import Operand

FLOAT = 1
"""`TensorProto.FLOAT`, for `Cast`."""


def _activation(derivative: Callable[[Step, str, str], str]) -> Rule:
    """Return the rule of a function of one value, from its derivative as a function of the step, the input and the output."""

    def rule(step: Step) -> None:
        step.scale(0, Factor(derivative(step, step.node.input[0], step.output), step.extent))

    return rule


def _mask(step: Step, condition: str) -> str:
    return step.op("Cast", condition, to=FLOAT)


def _between(step: Step, x: str, low: float | None, high: float | None) -> str:
    """Return a mask that is 1 where `low < x < high`. None means no bound."""
    masks = []
    if low is not None:
        masks.append(_mask(step, step.op("Greater", x, low)))
    if high is not None:
        masks.append(_mask(step, step.op("Less", x, high)))
    if not masks:
        return step.op("Add", step.op("Mul", x, 0.0), 1.0)
    return masks[0] if len(masks) == 1 else step.op("Mul", *masks)


def _where_positive(step: Step, x: str, inside: Operand, outside: Operand) -> str:
    return step.op("Where", step.op("Greater", x, 0.0), inside, outside)


def _sigmoid_slope(step: Step, y: str) -> str:
    return step.op("Mul", y, step.op("Sub", 1.0, y))


def _elu(step: Step, x: str, _: str) -> str:
    alpha = step.attributes.get("alpha", 1.0)
    return _where_positive(step, x, 1.0, step.op("Mul", step.op("Exp", step.op("Min", x, 0.0)), alpha))


def _celu(step: Step, x: str, _: str) -> str:
    alpha = step.attributes.get("alpha", 1.0)
    return _where_positive(step, x, 1.0, step.op("Exp", step.op("Div", step.op("Min", x, 0.0), alpha)))


def _selu(step: Step, x: str, _: str) -> str:
    alpha, gamma = step.attributes.get("alpha", 1.6732632), step.attributes.get("gamma", 1.0507010)
    return step.op("Mul", _where_positive(step, x, 1.0, step.op("Mul", step.op("Exp", step.op("Min", x, 0.0)), alpha)), gamma)


def _hard_sigmoid(step: Step, x: str, _: str) -> str:
    alpha, beta = step.attributes.get("alpha", 0.2), step.attributes.get("beta", 0.5)
    return step.op("Mul", _between(step, x, -beta / alpha, (1 - beta) / alpha), alpha)


def _hard_swish(step: Step, x: str, _: str) -> str:
    middle = step.op("Add", step.op("Mul", x, 1 / 3), 0.5)
    return step.op("Where", step.op("GreaterOrEqual", x, 3.0), 1.0, step.op("Where", step.op("LessOrEqual", x, -3.0), 0.0, middle))


def _mish(step: Step, x: str, _: str) -> str:
    t = step.op("Tanh", step.op("Softplus", x))
    slope = step.op("Mul", step.op("Sub", 1.0, step.op("Mul", t, t)), step.op("Sigmoid", x))
    return step.op("Add", t, step.op("Mul", x, slope))


def _swish(step: Step, x: str, _: str) -> str:
    alpha = step.attributes.get("alpha", 1.0)
    s = step.op("Sigmoid", step.op("Mul", x, alpha) if alpha != 1 else x)
    return step.op("Add", s, step.op("Mul", step.op("Mul", x, alpha), _sigmoid_slope(step, s)))


def _erf_slope(step: Step, x: str) -> str:
    return step.op("Mul", step.op("Exp", step.op("Neg", step.op("Mul", x, x))), 2 / math.sqrt(math.pi))


def _gelu(step: Step, x: str, _: str) -> str:
    if step.attributes.get("approximate", b"none") == b"tanh":
        c = math.sqrt(2 / math.pi)
        square = step.op("Mul", x, x)
        t = step.op("Tanh", step.op("Mul", x, step.op("Add", step.op("Mul", square, 0.044715 * c), c)))
        inner = step.op("Add", step.op("Mul", square, 3 * 0.044715 * c), c)
        slope = step.op("Mul", step.op("Mul", x, step.op("Sub", 1.0, step.op("Mul", t, t))), inner)
        return step.op("Mul", step.op("Add", step.op("Add", t, 1.0), slope), 0.5)
    scaled = step.op("Mul", x, 1 / math.sqrt(2))
    cumulative = step.op("Mul", step.op("Add", step.op("Erf", scaled), 1.0), 0.5)
    density = step.op("Mul", step.op("Exp", step.op("Mul", step.op("Mul", x, x), -0.5)), 1 / math.sqrt(2 * math.pi))
    return step.op("Add", cumulative, step.op("Mul", x, density))


def _clip(step: Step) -> None:
    bounds: list[float | None] = []
    for index in (1, 2):
        given = step.input(index) is not None
        bounds.append(float(step.required(index, "a bound").reshape(())) if given else None)
    step.scale(0, Factor(_between(step, step.node.input[0], *bounds), step.extent))


def _prelu(step: Step) -> None:
    slope = step.required(1, "a slope").astype(np.float32)
    step.scale(0, Factor(_where_positive(step, step.node.input[0], 1.0, slope), step.extent))


def _pow(step: Step) -> None:
    exponent = step.required(1, "an exponent").astype(np.float32)
    x = step.node.input[0]
    if step.extent_of(0) != step.extent:
        raise NotImplementedError("several exponents for each element")
    power = float(exponent.ravel()[0]) if exponent.size == 1 else None
    if power is None:
        step.scale(0, Factor(step.op("Mul", step.op("Pow", x, exponent - 1), exponent), step.extent))
    elif power == 1:
        step.give(0, step.gradient)
    elif power == 2:
        step.scale(0, Factor(step.op("Mul", x, 2.0), step.extent))
    else:
        step.scale(0, Factor(step.op("Mul", step.op("Pow", x, power - 1), power), step.extent))


def _pass(step: Step) -> None:
    step.give(0, step.gradient)


def _cast(step: Step) -> None:
    if step.needs(0) and step.node.input[0] in step.flow.graph.extents:
        step.give(0, step.gradient)


def _nothing(_: Step) -> None:
    """Contribute nothing: the derivative is 0 wherever it exists."""


def _broadcast(step: Step, index: int, factor: Factor | None) -> None:
    """Contribute the gradient times a factor to an input that may have been broadcast."""
    if not step.needs(index):
        return
    gradient = step.gradient if factor is None else step.rows.combine("Mul", step.gradient, step.extent, factor)
    step.give(index, step.rows.reduce_to(gradient, step.extent, step.extent_of(index)))


def _sum(step: Step) -> None:
    for index in range(len(step.node.input)):
        _broadcast(step, index, None)


def _mean(step: Step) -> None:
    for index in range(len(step.node.input)):
        _broadcast(step, index, Factor(np.array(1 / len(step.node.input), dtype=np.float32)))


def _sub(step: Step) -> None:
    _broadcast(step, 0, None)
    _broadcast(step, 1, Factor(np.array(-1.0, dtype=np.float32)))


def _mul(step: Step) -> None:
    for index in (0, 1):
        if step.needs(index):
            _broadcast(step, index, step.factor(1 - index))


def _div(step: Step) -> None:
    if step.needs(0):
        divisor = step.constant(1)
        if divisor is not None:
            _broadcast(step, 0, Factor((1 / divisor.astype(np.float64)).astype(np.float32)))
        else:
            _broadcast(step, 0, Factor(step.op("Reciprocal", step.node.input[1]), step.extent_of(1)))
    if step.needs(1):
        _broadcast(step, 1, Factor(step.op("Neg", step.op("Div", step.output, step.node.input[1])), step.extent))


def _where(step: Step) -> None:
    mask = step.op("Expand", step.op("Cast", step.node.input[0], to=FLOAT), step.op("Shape", step.output))
    _broadcast(step, 1, Factor(mask, step.extent))
    _broadcast(step, 2, Factor(step.op("Sub", 1.0, mask), step.extent))


def _extremum(step: Step) -> None:
    """Contribute the gradient of Max or Min to the first input that is equal to the output."""
    claimed: str | None = None
    for index, name in enumerate(step.node.input):
        mask = _mask(step, step.op("Equal", step.op("Add", name, step.op("Mul", step.output, 0.0)), step.output))
        share = mask if claimed is None else step.op("Mul", mask, step.op("Sub", 1.0, claimed))
        claimed = share if claimed is None else step.op("Add", claimed, share)
        _broadcast(step, index, Factor(share, step.extent))


def log_softmax_gradient(step: Step) -> None:
    """Contribute `g - softmax sum(g)` along the axis."""
    axis = step.axis(-1, step.extent.rank)
    split = axis + 2 if axis > step.extent.batch else axis
    _require_other_axis(step.extent, axis)
    total = step.op("ReduceSum", step.rows.split(step.gradient, step.extent), np.array([split]), keepdims=1)
    p = step.rows.beside(Factor(step.op("Exp", step.output), step.extent), step.extent)
    result = step.op("Sub", step.rows.split(step.gradient, step.extent), step.op("Mul", total, p))
    step.give(0, step.rows.merge(result, step.extent))


def softmax_gradient(step: Step) -> None:
    """Contribute `p (g - sum(p g))` along the axis."""
    axis = step.axis(-1, step.extent.rank)
    split = axis + 2 if axis > step.extent.batch else axis
    _require_other_axis(step.extent, axis)
    p = step.rows.beside(Factor(step.output, step.extent), step.extent)
    weighted = step.op("Mul", step.rows.split(step.gradient, step.extent), p)
    total = step.op("ReduceSum", weighted, np.array([split]), keepdims=1)
    step.give(0, step.rows.merge(step.op("Sub", weighted, step.op("Mul", p, total)), step.extent))


def _require_other_axis(extent: Extent, axis: int) -> None:
    if axis == extent.batch:
        raise NotImplementedError("an axis along the batch")


ELEMENTWISE_RULES: dict[str, Rule] = {
    "Relu": _activation(lambda step, x, _: _between(step, x, 0.0, None)),
    "LeakyRelu": _activation(lambda step, x, _: _where_positive(step, x, 1.0, step.attributes.get("alpha", 0.01))),
    "ThresholdedRelu": _activation(lambda step, x, _: _between(step, x, step.attributes.get("alpha", 1.0), None)),
    "Elu": _activation(_elu),
    "Celu": _activation(_celu),
    "Selu": _activation(_selu),
    "PRelu": _prelu,
    "Sigmoid": _activation(lambda step, _, y: _sigmoid_slope(step, y)),
    "Tanh": _activation(lambda step, _, y: step.op("Sub", 1.0, step.op("Mul", y, y))),
    "HardSigmoid": _activation(_hard_sigmoid),
    "HardSwish": _activation(_hard_swish),
    "Softplus": _activation(lambda step, x, _: step.op("Sigmoid", x)),
    "Softsign": _activation(lambda step, x, _: step.op("Reciprocal", step.op("Pow", step.op("Add", step.op("Abs", x), 1.0), 2.0))),
    "Mish": _activation(_mish),
    "Swish": _activation(_swish),
    "Erf": _activation(lambda step, x, _: _erf_slope(step, x)),
    "Gelu": _activation(_gelu),
    "Exp": _activation(lambda _, __, y: y),
    "Log": _activation(lambda step, x, _: step.op("Reciprocal", x)),
    "Sqrt": _activation(lambda step, _, y: step.op("Div", 0.5, y)),
    "Reciprocal": _activation(lambda step, _, y: step.op("Neg", step.op("Mul", y, y))),
    "Neg": lambda step: step.scale(0, Factor(np.array(-1.0, dtype=np.float32))),
    "Abs": _activation(lambda step, x, _: step.op("Sign", x)),
    "Sin": _activation(lambda step, x, _: step.op("Cos", x)),
    "Tan": _activation(lambda step, _, y: step.op("Add", step.op("Mul", y, y), 1.0)),
    "Atan": _activation(lambda step, x, _: step.op("Reciprocal", step.op("Add", step.op("Mul", x, x), 1.0))),
    "Sinh": _activation(lambda step, x, _: step.op("Cosh", x)),
    "Cosh": _activation(lambda step, x, _: step.op("Sinh", x)),
    "Cos": _activation(lambda step, x, _: step.op("Neg", step.op("Sin", x))),
    "Floor": _nothing,
    "Ceil": _nothing,
    "Round": _nothing,
    "Sign": _nothing,
    "Clip": _clip,
    "Pow": _pow,
    "Identity": _pass,
    "Dropout": _pass,
    "Cast": _cast,
    "Add": _sum,
    "Sum": _sum,
    "Mean": _mean,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Where": _where,
    "Max": _extremum,
    "Min": _extremum,
    "Softmax": softmax_gradient,
    "LogSoftmax": log_softmax_gradient,
}
