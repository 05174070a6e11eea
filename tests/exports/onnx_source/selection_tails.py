"""Tails of small classifiers that select, replace or order elements, for the tests of the gradient rules."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.helpers.exports.onnx_files import CHANNELS, CLASSES, SIZE, Graph

Tail = Callable[[Graph, str], str]
HALF = SIZE // 2
F = np.float32


def flattened(g: Graph, x: str, size: int) -> str:
    """Return logits of all numbers of a value."""
    return g.add("Gemm", g.add("Flatten", x), g.normal(CLASSES, size), transB=1)


def per_image(g: Graph, indices: np.ndarray) -> str:
    """Repeat indices for each image, as exporters write `expand(len(x), ...)`."""
    shape = g.add("Concat", g.add("Shape", "layer", start=0, end=1), np.ones(indices.ndim, dtype=np.int64), axis=0)
    return g.add("Expand", indices[None], shape)


def gathered(g: Graph, x: str) -> str:
    """As PyTorch's older exporter writes `x[:, i, j]`: the selected axes first, one element twice."""
    y = g.add("GatherND", g.add("Transpose", g.add("Sin", x), perm=[1, 2, 0, 3]), np.array([[0, 1], [5, -1], [0, 1]]))
    return flattened(g, g.add("Transpose", y, perm=[1, 0, 2]), 3 * HALF)


def gathered_per_image(g: Graph, x: str) -> str:
    y = g.add("GatherND", g.add("Sin", x), per_image(g, np.array([[0, 1], [5, 2]])), batch_dims=1)
    return flattened(g, y, 2 * HALF)


def largest_token(g: Graph, x: str) -> str:
    """As `x[arange(len(x)), x.mean(-1).argmax(-1)]`: the selected token depends on the image."""
    tokens = g.add("Reshape", x, np.array([0, CHANNELS, -1]))
    best = g.add("ArgMax", g.add("ReduceSum", tokens, np.array([2]), keepdims=0), axis=1, keepdims=0)
    count = g.add("Squeeze", g.add("Shape", "layer", start=0, end=1))
    rows = g.add("Range", np.array(0), count, np.array(1))
    places = g.add("Concat", g.add("Unsqueeze", rows, np.array([1])), g.add("Unsqueeze", best, np.array([1])), axis=1)
    return flattened(g, g.add("GatherND", g.add("Sin", tokens), places), HALF * HALF)


def scattered(g: Graph, x: str) -> str:
    """As PyTorch writes `y[:, :, 0] = x[:, :, 2] * x[:, :, 2]`: the replaced axis first."""
    source = g.add("Transpose", x, perm=[2, 0, 1, 3])
    row = g.add("Gather", source, np.array([2, 4]), axis=0)
    y = g.add("ScatterND", g.add("Sin", source), np.array([[0], [7]]), g.add("Mul", row, row))
    return flattened(g, g.add("Transpose", y, perm=[1, 2, 3, 0]), 384)


def scattered_per_image(g: Graph, x: str) -> str:
    """As PyTorch's older exporter writes `y[:, 0] = ...`, with the numbers of the images among the indices, into a value of zeros."""
    count = g.add("Shape", "layer", start=0, end=1)
    rows = g.add("Range", np.array(0), g.add("Squeeze", count), np.array(1))
    rows = g.add("Reshape", rows, np.array([-1, 1, 1]))
    channels = g.add("Expand", np.array([[[1], [3]]]), g.add("Concat", count, np.array([2, 1]), axis=0))
    places = g.add("Concat", g.add("Expand", rows, g.add("Concat", count, np.array([2, 1]), axis=0)), channels, axis=2)
    blank = g.add("ConstantOfShape", g.add("Shape", x))
    updates = g.add("Slice", g.add("Mul", x, x), np.array([2]), np.array([4]), np.array([1]))
    return flattened(g, g.add("Add", g.add("ScatterND", blank, places, updates), x), 384)


def scattered_elements(g: Graph, x: str) -> str:
    indices = per_image(g, np.tile(np.array([[4], [0]])[:, :, None], (1, HALF, HALF)))
    updates = g.add("Slice", g.add("Mul", x, x), np.array([2]), np.array([4]), np.array([1]))
    return flattened(g, g.add("ScatterElements", g.add("Sin", x), indices, updates, axis=1), 384)


def ordered(g: Graph, x: str) -> str:
    """As PyTorch writes `sort`: all values along an axis, in ascending order."""
    return flattened(g, g.add("Sin", g.add("TopK", x, np.array([HALF]), name="sorted", outputs=2, axis=2, largest=0)), 384)


def of_largest(g: Graph, x: str) -> str:
    """Elements of one value at the places of the largest of another."""
    g.add("TopK", g.add("Cos", x), np.array([3]), name="top", outputs=2, axis=-1)
    return flattened(g, g.add("GatherElements", g.add("Sin", x), "top_1", axis=-1), CHANNELS * HALF * 3)


def summed(**attributes: int) -> Tail:
    return lambda g, x: flattened(g, g.add("Sin", g.add("CumSum", x, np.array(-2), **attributes)), 384)


SELECTION_TAILS: dict[str, Tail] = {
    "GatherND": gathered,
    "GatherND batch_dims": gathered_per_image,
    "GatherND image": largest_token,
    "ScatterND": scattered,
    "ScatterND images": scattered_per_image,
    "ScatterElements": scattered_elements,
    "GatherElements": of_largest,
    "TopK": lambda g, x: flattened(g, g.add("TopK", g.add("Sin", x), np.array([2]), outputs=2, axis=1), 2 * 64),
    "TopK all": ordered,
    "Trilu": lambda g, x: flattened(g, g.add("Trilu", g.add("Sin", x), np.array(1), upper=0), 384),
    "Trilu upper": lambda g, x: flattened(g, g.add("Trilu", g.add("Sin", x)), 384),
    "CumSum": summed(),
    "CumSum exclusive": summed(exclusive=1),
    "CumSum reverse": summed(reverse=1, exclusive=1),
}
