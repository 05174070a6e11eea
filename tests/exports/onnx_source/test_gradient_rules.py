"""Every gradient rule against central differences in float64: each number of the gradient, for several images and classes at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.exports.onnx_source.selection_tails import HALF, SELECTION_TAILS, F, Tail, flattened
from tests.helpers.exports.onnx_files import CHANNELS, CLASSES, SIZE, Graph, explain, head, stem
from tlcli.exports.onnx_source.double_tail import DoubleTail
from tlcli.exports.onnx_source.gradients.rules import RULES


def unary(operator: str, before: float | None = None, **attributes: object) -> Tail:
    """Return a tail of one function; `before` is added to the layer first."""

    def tail(g: Graph, x: str) -> str:
        x = g.add("Add", g.add("Mul", x, g.normal(CHANNELS, 1, 1, scale=1)), F(before)) if before is not None else x
        return head(g, g.add(operator, x, **attributes))

    return tail


def positive(operator: str) -> Tail:
    return lambda g, x: head(g, g.add(operator, g.add("Add", g.add("Mul", x, x), F(0.5))))


def attention(g: Graph, x: str) -> str:
    """Self-attention over the positions, with the heads before the batch, as PyTorch writes it."""
    tokens = g.add("Transpose", g.add("Reshape", x, np.array([0, CHANNELS, -1])), perm=[0, 2, 1])
    tokens = g.add("LayerNormalization", tokens, np.abs(g.normal(CHANNELS, scale=1)) + F(0.5), g.normal(CHANNELS, scale=0.1))
    joint = g.add("MatMul", tokens, g.normal(CHANNELS, 3 * CHANNELS, scale=0.7))
    parts = g.add("Transpose", g.add("Reshape", joint, np.array([0, HALF * HALF, 3, 2, CHANNELS // 2])), perm=[2, 0, 3, 1, 4])
    q, k, v = (g.add("Gather", parts, np.array(number), axis=0) for number in range(3))
    weights = g.add("Softmax", g.add("MatMul", q, g.add("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    mixed = g.add("Transpose", g.add("MatMul", weights, v), perm=[0, 2, 1, 3])
    tokens = g.add("Add", g.add("Reshape", mixed, np.array([0, HALF * HALF, CHANNELS])), tokens)
    pooled = g.add("ReduceMean", tokens, axes=[1], keepdims=0)
    return g.add("Gemm", pooled, g.normal(CHANNELS, CLASSES))


def excited(g: Graph, x: str) -> str:
    gate = g.add("Sigmoid", g.add("Conv", g.add("GlobalAveragePool", x), g.normal(CHANNELS, CHANNELS, 1, 1), g.normal(CHANNELS)))
    return head(g, g.add("Mul", gate, x))


def shuffled(g: Graph, x: str) -> str:
    """Split, convolve one half, join, shuffle the channels: as in ShuffleNet."""
    first = g.add("Split", x, np.array([2, 4]), axis=1, outputs=2)
    second = g.add("Conv", f"{first}_1", g.normal(4, 1, 3, 3), group=4, pads=[1, 1, 1, 1])
    joined = g.add("Concat", first, second, axis=1)
    shuffled = g.add("Transpose", g.add("Reshape", joined, np.array([-1, 2, 3, HALF, HALF])), perm=[0, 2, 1, 3, 4])
    return flattened(g, g.add("Relu", g.add("Reshape", shuffled, np.array([-1, CHANNELS, HALF, HALF]))), CHANNELS * HALF * HALF)


def pooled_tail(operator: str, size: int, **attributes: object) -> Tail:
    return lambda g, x: flattened(g, g.add(operator, x, **attributes), CHANNELS * size * size)


def reduced(operator: str, axes: list[int], keepdims: int, size: int) -> Tail:
    return lambda g, x: flattened(g, g.add(operator, x, np.array(axes), keepdims=keepdims), size)


def half_zero(g: Graph, x: str) -> str:
    """Multiply every second channel by zero: the derivative of its norm must not become NaN."""
    return g.add("Mul", x, (np.arange(CHANNELS) % 2).astype(np.float32).reshape(-1, 1, 1))


def convolved(size: int, channels: int = 4, groups: int = 1, kernel: tuple[int, int] = (3, 3), **attributes: object) -> Tail:
    def tail(g: Graph, x: str) -> str:
        y = g.add("Conv", x, g.normal(channels, CHANNELS // groups, *kernel), group=groups, **attributes)
        return flattened(g, y, channels * size)

    return tail


def batch_normalised(g: Graph, x: str) -> str:
    statistics = (np.abs(g.normal(CHANNELS)) + F(0.5) for _ in range(4))
    return head(g, g.add("Sin", g.add("BatchNormalization", x, *statistics)))


def group_normalised(g: Graph, x: str) -> str:
    return flattened(g, g.add("GroupNormalization", x, g.normal(CHANNELS), g.normal(CHANNELS), num_groups=3), 384)


def sliced(g: Graph, x: str) -> str:
    y = g.add("Slice", x, np.array([1, 7]), np.array([6, -100]), np.array([1, 3]), np.array([2, -3]))
    return flattened(g, y, 3 * HALF * 3)


def expanded(g: Graph, x: str) -> str:
    largest = g.add("ReduceMax", x, np.array([1]), keepdims=1)
    return flattened(g, g.add("Expand", largest, np.array([1, 3, 1, 1])), 3 * HALF * HALF)


def conv_classifier(g: Graph, x: str) -> str:
    """As SqueezeNet: the last convolution has a channel per class."""
    return g.add("Flatten", g.add("GlobalAveragePool", g.add("Relu", g.add("Conv", x, g.normal(CLASSES, CHANNELS, 1, 1)))))


def resized(mode: str, scales: tuple[float, float], **attributes: object) -> Tail:
    def tail(g: Graph, x: str) -> str:
        y = g.add("Resize", x, "", np.array([1, 1, *scales], dtype=F), mode=mode, **attributes)
        return flattened(g, g.add("Sin", y), CHANNELS * int(HALF * scales[0]) * int(HALF * scales[1]))

    return tail


def einsum(equation: str, size: int, weight: Callable[[Graph], np.ndarray]) -> Tail:
    return lambda g, x: flattened(g, g.add("Sin", g.add("Einsum", x, weight(g), equation=equation)), size)


def einsum_attention(g: Graph, x: str) -> str:
    weights = g.add("Softmax", g.add("Einsum", x, g.add("Tanh", x), equation="nchw,nciw->nchi"), axis=-1)
    return flattened(g, g.add("Einsum", weights, x, equation="nchi,nciw->nwhc"), 384)


def transposed(shape: tuple[int, int, int], groups: int = 1, **attributes: object) -> Tail:
    def tail(g: Graph, x: str) -> str:
        weight = g.normal(CHANNELS, shape[0] // groups, 3, 3, scale=0.4)
        y = g.add("ConvTranspose", x, weight, g.normal(shape[0]), group=groups, **attributes)
        return flattened(g, g.add("Sin", y), shape[0] * shape[1] * shape[2])

    return tail


TAILS: dict[str, Tail] = SELECTION_TAILS | {
    **{name: unary(name) for name in ("Relu", "LeakyRelu", "Elu", "Celu", "Selu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish")},
    **{name: unary(name) for name in (
        *("Softplus", "Softsign", "Mish", "Erf", "Gelu", "Exp", "Neg", "Abs", "Sin", "Cos", "Identity"),
        *("Tan", "Atan", "Sinh", "Cosh"),
    )},
    "ThresholdedRelu": unary("ThresholdedRelu", alpha=0.1),
    "Gelu tanh": unary("Gelu", approximate="tanh"),
    "Sqrt": positive("Sqrt"),
    "Log": positive("Log"),
    "Reciprocal": positive("Reciprocal"),
    "Round": lambda g, x: head(g, g.add("Add", g.add("Round", x), x)),
    "PRelu": lambda g, x: head(g, g.add("PRelu", x, g.normal(CHANNELS, 1, 1))),
    "Clip": lambda g, x: head(g, g.add("Clip", x, F(-0.3), F(0.4))),
    "Clip above": lambda g, x: head(g, g.add("Clip", x, "", F(0.4))),
    "Pow 2": lambda g, x: head(g, g.add("Pow", x, F(2))),
    "Pow 0.5": lambda g, x: head(g, g.add("Pow", g.add("Add", g.add("Abs", x), F(1)), F(0.5))),
    "Dropout": lambda g, x: head(g, g.add("Dropout", x)),
    "Cast": lambda g, x: head(g, g.add("Cast", x, to=1)),
    "Add broadcast": lambda g, x: head(g, g.add("Add", g.add("ReduceMax", x, np.array([1]), keepdims=1), g.add("Tanh", x))),
    "Sum": lambda g, x: head(g, g.add("Sum", x, g.add("Tanh", x), g.normal(CHANNELS, 1, 1))),
    "Mean": lambda g, x: head(g, g.add("Mean", x, g.add("Tanh", x))),
    "Sub": lambda g, x: head(g, g.add("Sub", g.add("Exp", x), g.add("GlobalAveragePool", x))),
    "Sub constant": lambda g, x: head(g, g.add("Relu", g.add("Sub", g.normal(CHANNELS, 1, 1), x))),
    "Mul": excited,
    "Mul lower rank": lambda g, x: head(g, g.add("Mul", g.normal(HALF), g.add("Sin", x))),
    "Div": lambda g, x: head(g, g.add("Div", x, g.add("Add", g.add("Mul", x, x), F(1)))),
    "Div constant": lambda g, x: head(g, g.add("Div", F(2), g.add("Add", g.add("Exp", x), F(1)))),
    "Div by constant": lambda g, x: head(g, g.add("Sin", g.add("Div", x, F(3)))),
    "Where": lambda g, x: head(g, g.add("Where", g.add("Greater", x, F(0.1)), g.add("Sin", x), g.add("Mul", x, F(0.2)))),
    "Max": lambda g, x: head(g, g.add("Max", x, g.add("Neg", x), F(0.2))),
    "Min": lambda g, x: head(g, g.add("Min", g.add("Sin", x), F(0.2))),
    "Softmax": lambda g, x: flattened(g, g.add("Softmax", x, axis=1), CHANNELS * HALF * HALF),
    "LogSoftmax": lambda g, x: flattened(g, g.add("LogSoftmax", g.add("Flatten", x), axis=-1), CHANNELS * HALF * HALF),
    "Gemm": lambda g, x: flattened(g, x, CHANNELS * HALF * HALF),
    "Gemm alpha": lambda g, x: g.add("Gemm", g.add("Flatten", x), g.normal(CHANNELS * HALF * HALF, CLASSES), alpha=0.5),
    "two layers": lambda g, x: g.add("Gemm", g.add("Relu", flattened(g, x, CHANNELS * HALF * HALF)), g.normal(CLASSES, CLASSES, scale=1)),
    "MatMul 4D": lambda g, x: flattened(g, g.add("Sin", g.add("MatMul", x, g.normal(HALF, 3))), CHANNELS * HALF * 3),
    "MatMul left": lambda g, x: flattened(g, g.add("Sin", g.add("MatMul", g.normal(3, HALF), x)), CHANNELS * HALF * 3),
    "attention": attention,
    "Conv": convolved(16, strides=[2, 2], pads=[1, 1, 1, 1]),
    "Conv groups": convolved(64, channels=CHANNELS, groups=3, pads=[1, 1, 1, 1]),
    "Conv dilated": convolved(18, kernel=(3, 2), dilations=[2, 3], strides=[2, 1], pads=[0, 1, 2, 0]),
    "Conv uncovered": convolved(4, kernel=(2, 2), strides=[4, 4]),
    "Conv SAME_LOWER": convolved(16, kernel=(4, 4), strides=[2, 2], auto_pad="SAME_LOWER"),
    "Conv VALID": convolved(9, strides=[2, 2], auto_pad="VALID"),
    "BatchNormalization": batch_normalised,
    "InstanceNormalization": lambda g, x: flattened(g, g.add("InstanceNormalization", x, g.normal(CHANNELS), g.normal(CHANNELS)), 384),
    "LayerNormalization": lambda g, x: flattened(g, g.add("LayerNormalization", x, g.normal(CHANNELS, HALF, HALF), axis=1), 384),
    "GroupNormalization": group_normalised,
    "LRN": lambda g, x: flattened(g, g.add("LRN", x, size=3, alpha=0.5, beta=0.75, bias=1.5), 384),
    "MaxPool": pooled_tail("MaxPool", 4, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "MaxPool ceil": pooled_tail("MaxPool", 4, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "MaxPool dilated": pooled_tail("MaxPool", 4, kernel_shape=[3, 3], dilations=[2, 2]),
    "AveragePool": pooled_tail("AveragePool", 4, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "AveragePool padded": pooled_tail("AveragePool", 4, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1),
    "AveragePool ceil": pooled_tail("AveragePool", 4, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "AveragePool SAME": pooled_tail("AveragePool", 4, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    "GlobalMaxPool": lambda g, x: flattened(g, g.add("GlobalMaxPool", x), CHANNELS),
    "ReduceMean": reduced("ReduceMean", [2, 3], 0, CHANNELS),
    "ReduceSum": reduced("ReduceSum", [-1], 1, CHANNELS * HALF),
    "ReduceMax": reduced("ReduceMax", [2, 3], 0, CHANNELS),
    "ReduceMin": reduced("ReduceMin", [1], 0, HALF * HALF),
    "ReduceL2": reduced("ReduceL2", [2, 3], 0, CHANNELS),
    "ReduceL2 zeros": lambda g, x: flattened(g, g.add("ReduceL2", half_zero(g, x), np.array([2, 3]), keepdims=0), CHANNELS),
    "ReduceSumSquare": reduced("ReduceSumSquare", [1], 1, HALF * HALF),
    "Squeeze": lambda g, x: g.add("Gemm", g.add("Squeeze", g.add("GlobalAveragePool", x), np.array([2, 3])), g.normal(CHANNELS, CLASSES)),
    "Unsqueeze": lambda g, x: flattened(g, g.add("Unsqueeze", x, np.array([2])), 384),
    "Split": shuffled,
    "Slice": sliced,
    "Slice range": lambda g, x: flattened(g, g.add("Slice", x, np.array([2]), np.array([2**62]), np.array([2])), CHANNELS * 6 * HALF),
    "Gather": lambda g, x: flattened(g, g.add("Gather", x, np.array([[4, -6], [1, 3]]), axis=1), 4 * HALF * HALF),
    "Gather one": lambda g, x: flattened(g, g.add("Gather", x, np.array(2), axis=3), CHANNELS * HALF),
    "Pad": lambda g, x: flattened(g, g.add("Pad", x, np.array([0, 0, 1, 2, 0, 1, 0, 3]), F(0.5)), 7 * 9 * 13),
    "Expand": expanded,
    "conv classifier": conv_classifier,
    "Resize nearest": resized("nearest", (2.0, 3.0), coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    "Resize linear": resized("linear", (1.6, 0.7), coordinate_transformation_mode="half_pixel"),
    "Resize align_corners": resized("linear", (2.0, 2.0), coordinate_transformation_mode="align_corners"),
    "Resize cubic": resized("cubic", (1.5, 2.0), cubic_coeff_a=-0.5),
    "Resize antialias": resized("linear", (0.5, 0.4), antialias=1),
    "Resize sizes": lambda g, x: flattened(g, g.add("Resize", x, "", "", np.array([11, 5]), mode="linear", axes=[2, 3]), CHANNELS * 55),
    "ConvTranspose": transposed((4, 15, 15), strides=[2, 2], pads=[1, 1, 1, 1]),
    "ConvTranspose groups": transposed((6, 18, 10), groups=3, strides=[2, 1], dilations=[1, 1], output_padding=[1, 0]),
    "ConvTranspose cut": transposed((4, 18, 18), strides=[2, 2], pads=[0, 0, 0, 0], output_padding=[1, 1], dilations=[1, 1]),
    "ConvTranspose dilated": transposed((4, 10, 13), dilations=[2, 3], pads=[1, 0, 1, 1]),
    "ConvTranspose SAME_UPPER": transposed((4, 16, 16), strides=[2, 2], auto_pad="SAME_UPPER"),
    "ConvTranspose output_shape": transposed((4, 16, 17), strides=[2, 2], output_shape=[16, 17]),
    "Einsum weight": einsum("nchw,cd->ndhw", 4 * 64, lambda g: g.normal(CHANNELS, 4)),
    "Einsum dots": einsum("...w, wd -> ...d", CHANNELS * HALF * 3, lambda g: g.normal(HALF, 3)),
    "Einsum attention": einsum_attention,
    "Einsum sums": lambda g, x: flattened(g, g.add("Sin", g.add("Einsum", x, equation="nchw->nch")), CHANNELS * HALF),
    "Einsum without output": einsum("abij,bc", 4 * 64, lambda g: g.normal(CHANNELS, 4)),
    "Einsum broadcast": einsum("nchw,nchd->nchwd", CHANNELS * 64 * 3, lambda g: g.normal(1, 1, HALF, 3)),
    "Einsum diagonal": einsum("nchh,cd->ndh", 4 * HALF, lambda g: g.normal(CHANNELS, 4)),
    "Einsum long": lambda g, x: flattened(
        g, g.add("Einsum", x, g.add("Tanh", x), g.normal(HALF, 3), g.add("Sin", x), equation="nchw,ncij,wd,nciw->nhjd"), 192
    ),
    "Tile": lambda g, x: flattened(g, g.add("Sin", g.add("Tile", x, np.array([1, 2, 1, 3]))), 6 * 384),
    "Gather repeated": lambda g, x: flattened(g, g.add("Sin", g.add("Gather", x, np.array([1, 1, 4, 1]), axis=1)), 4 * 64),
    "DepthToSpace": lambda g, x: flattened(g, g.add("DepthToSpace", g.add("Concat", x, x, axis=1), blocksize=2), 768),
    "DepthToSpace CRD": lambda g, x: flattened(g, g.add("DepthToSpace", g.add("Concat", x, x, axis=1), blocksize=2, mode="CRD"), 768),
    "Attention": lambda g, x: flattened(g, g.add("Attention", x, g.add("Tanh", x), g.add("Sin", x)), 384),
    "RMSNormalization": lambda g, x: flattened(g, g.add("RMSNormalization", x, g.normal(HALF), axis=-1), 384),
    "MeanVarianceNormalization": lambda g, x: flattened(g, g.add("MeanVarianceNormalization", x, axes=[2, 3]), 384),
    "ReduceL1": reduced("ReduceL1", [1], 1, HALF * HALF),
    "ReduceLogSumExp": reduced("ReduceLogSumExp", [2, 3], 0, CHANNELS),
    "ReduceLogSum": lambda g, x: flattened(g, g.add("ReduceLogSum", g.add("Exp", x), np.array([2, 3]), keepdims=0), CHANNELS),
    "Shrink": unary("Shrink", lambd=0.1, bias=0.05),
    "Swish": unary("Swish", alpha=1.5),
    "Where broadcast": lambda g, x: flattened(
        g, g.add("Where", np.tri(HALF, dtype=bool), g.add("Sin", x), g.add("ReduceMax", x, np.array([1, 2, 3]), keepdims=1)), 384
    ),
    "Where image": lambda g, x: flattened(
        g, g.add("Where", g.add("Less", g.add("GlobalMaxPool", x), F(0.8)), g.add("Sin", x), g.normal(HALF, 1)), 384
    ),
    "Pow per channel": lambda g, x: head(
        g, g.add("Pow", g.add("Exp", x), np.linspace(0.5, 3, CHANNELS, dtype=np.float32).reshape(-1, 1, 1))
    ),
    "LpPool": pooled_tail("LpPool", 4, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "LpPool 1": pooled_tail("LpPool", 3, kernel_shape=[3, 3], strides=[2, 2], p=1),
    "LpPool 3": pooled_tail("LpPool", 7, kernel_shape=[2, 2], p=3),
    "GlobalLpPool": lambda g, x: flattened(g, g.add("GlobalLpPool", x, p=3), CHANNELS),
    "GlobalLpPool zeros": lambda g, x: flattened(g, g.add("GlobalLpPool", half_zero(g, x), p=2), CHANNELS),
    "LpPool zeros": lambda g, x: flattened(g, g.add("LpPool", half_zero(g, x), kernel_shape=[2, 2]), CHANNELS * 49),
    "MaxPool 1D": lambda g, x: flattened(
        g, g.add("MaxPool", g.add("Reshape", x, np.array([0, CHANNELS, -1])), kernel_shape=[3], strides=[2]), CHANNELS * 31
    ),
    "MaxPool parts": lambda g, x: flattened(
        g,
        g.add("Reshape", g.add("MaxPool", g.add("Reshape", x, np.array([-1, 3, HALF, HALF])), kernel_shape=[2, 2]), np.array([-1, 294])),
        294,
    ),
    "SpaceToDepth": lambda g, x: flattened(g, g.add("SpaceToDepth", x, blocksize=2), 384),
}  # fmt: skip


@pytest.mark.parametrize("name", TAILS)
def test_gradient_is_that_of_central_differences(name: str, tmp_path: Path) -> None:
    graph = Graph(seed=len(name))
    opset = {"Gelu": 20, "Gelu tanh": 20, "GroupNormalization": 21, "Attention": 23, "RMSNormalization": 23, "Swish": 24}.get(name, 18)
    logits = TAILS[name](graph, stem(graph))
    _restate(graph)
    path = graph.save(tmp_path / "tail.onnx", logits, opset=opset)
    explained, model = explain(path, tmp_path / "model.onnx", ["layer"], ["gradcam", "ablationcam"])
    images = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    targets = np.array([[0, 3], [4, 1], [2, 2]])
    answer = model.run(images, targets, ["ablationcam"], ["features", "gradients"])
    tail = DoubleTail(explained.graph, "source/layer", explained.classifier.logits)
    assert not tail.saved
    size = CHANNELS * HALF * HALF
    shape, step = (CHANNELS, HALF, HALF), 1e-6
    for image, classes in enumerate(targets):
        activations = answer.evidence["features"][image].astype(np.float64)
        directions = np.eye(size) if image == 0 else np.random.default_rng(image).standard_normal((8, size))
        ends = [tail(activations + sign * step * directions.reshape(-1, *shape), {})[:, classes] for sign in (1, -1)]
        expected = (ends[0] - ends[1]) / (2 * step)
        assert np.abs(expected).max() > 1e-4
        gradients = answer.evidence["gradients"][image].reshape(2, size)
        np.testing.assert_allclose(directions @ gradients.T, expected, atol=2e-5 * np.abs(expected).max())
        without = tail(activations * (1 - np.eye(CHANNELS)[:, :, None, None]), {})[:, classes].T
        scores = tail(activations[None], {})[0, classes]
        np.testing.assert_allclose(answer.logits[image, classes], scores, rtol=1e-4, atol=1e-5)
        weights = (scores[:, None] - without) / np.abs(scores)[:, None]
        maps = np.maximum(np.einsum("kc,chw->khw", weights, activations), 0)
        np.testing.assert_allclose(answer.maps["ablationcam"][image], maps, atol=1e-3 * max(np.abs(weights).max(), np.abs(maps).max()))


def _restate(graph: Graph) -> None:
    """Move the axes of ReduceMean from the attribute to the input, where this opset has them."""
    for node in graph.nodes:
        for attribute in list(node.attribute):
            if node.op_type == "ReduceMean" and attribute.name == "axes":
                node.input.append(graph._weight(np.array(attribute.ints)))
                node.attribute.remove(attribute)


def test_every_rule_is_tested() -> None:
    graph_operators = set()
    for name, tail in TAILS.items():
        graph = Graph(len(name))
        tail(graph, stem(graph))
        graph_operators |= {node.op_type for node in graph.nodes}
    untested = RULES.keys() - graph_operators - {"Floor", "Ceil", "Sign"}
    assert not untested


def test_the_guide_lists_every_rule() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "onnx_files.md").read_text()
    section = guide.partition("## Operators")[2].partition("Without a rule")[0]
    assert not {name for name in RULES if f"`{name}`" not in section}
