"""Gradient rule of Einsum.

The gradient with respect to one operand is an Einsum, too: of the output's gradient and the other operands. The letter of the batch
becomes three letters, for the images, the classes and the rows of each image; only the gradient and the result have the classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_letters

import numpy as np

from tlcli.exports.onnx_source.gradients.gradient_flow import Step
from tlcli.exports.onnx_source.graph.extents import Extent
from tlcli.exports.onnx_source.graph.node_writer import sizes


@dataclass(frozen=True)
class _Letters:
    """Letters of an equation without ellipsis: those of the operands, of the output, and of the batch's images, classes and rows."""

    operands: list[str]
    output: str
    batch: str
    split: tuple[str, str, str]

    def with_classes(self, term: str) -> str:
        return term.replace(self.batch, "".join(self.split))

    def without_classes(self, term: str) -> str:
        return term.replace(self.batch, self.split[0] + self.split[2])


def einsum(step: Step) -> None:
    """Contribute the gradient to each operand."""
    letters = _letters(step)
    gradient = step.rows.split(step.gradient, step.extent)
    for index, term in enumerate(letters.operands):
        if not step.needs(index):
            continue
        target = step.extent_of(index)
        if term[target.batch] != letters.batch:
            raise NotImplementedError("the batch under another letter than the output's")
        factors = [(other, number) for number, other in enumerate(letters.operands) if number != index]
        terms = [letters.with_classes(letters.output), *(letters.without_classes(other) for other, _ in factors)]
        values = [gradient, *(_split(step, number, other, letters.batch) for other, number in factors)]
        missing = [letter for letter in term if letter != letters.batch and not any(letter in known for known in terms)]
        if missing:  # summed over one operand only: its gradient is the same along these axes
            terms.append("".join(missing))
            values.append(step.writer.constant(np.ones([target.dims[term.index(letter)] for letter in missing], dtype=np.float32)))
        equation = f"{','.join(terms)}->{letters.with_classes(term)}"
        step.give(index, step.rows.merge(step.op("Einsum", *values, equation=equation), target))


def _split(step: Step, index: int, term: str, batch: str) -> str:
    """Return an operand with its batch axis split into images and rows."""
    name = step.node.input[index]
    if step.constant(index) is not None:
        if batch in term:
            raise NotImplementedError("a constant along the batch")
        return name
    extent = step.extent_of(index)
    if term[extent.batch] != batch:
        raise NotImplementedError("the batch under another letter than the output's")
    return step.op("Reshape", name, sizes(*extent.dims[: extent.batch], -1, *extent.dims[extent.batch :]))


def _letters(step: Step) -> _Letters:
    equation = step.attributes["equation"].decode().replace(" ", "")
    left, arrow, output = equation.partition("->")
    operands = left.split(",")
    unused = [letter for letter in ascii_letters if letter not in equation]
    if not arrow:
        raise NotImplementedError(f"the equation {equation}, which names no output")
    if "..." in equation:
        ranks = [_rank(step, index) - len(term.replace("...", "")) for index, term in enumerate(operands) if "..." in term]
        if len({*ranks}) > 1:
            raise NotImplementedError(f"the equation {equation}, whose dots stand for several numbers of axes")
        dots, unused = "".join(unused[: ranks[0]]), unused[ranks[0] :]
        operands, output = [term.replace("...", dots) for term in operands], output.replace("...", dots)
    if any(len({*term}) < len(term) for term in (*operands, output)):
        raise NotImplementedError(f"the equation {equation}, which takes a diagonal")
    _require_equal_sizes(step, operands, equation)
    return _Letters(operands, output, output[step.extent.batch], (unused[0], unused[1], unused[2]))


def _rank(step: Step, index: int) -> int:
    constant = step.constant(index)
    return step.extent_of(index).rank if constant is None else constant.ndim


def _require_equal_sizes(step: Step, operands: list[str], equation: str) -> None:
    known: dict[str, int] = {}
    for index, term in enumerate(operands):
        constant = step.constant(index)
        extent = Extent(constant.shape, -1) if constant is not None else step.extent_of(index)
        for letter, size in zip(term, extent.dims, strict=True):
            if known.setdefault(letter, size) != size:
                raise NotImplementedError(f"the equation {equation} with broadcasting")
