"""Gradient rule of Einsum.

The gradient with respect to one operand is an Einsum, too: of the output's gradient and the other operands. The letter of the batch
becomes three letters, for the images, the classes and the rows of each image; only the gradient and the result have the classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tlcli.exports.onnx_source.gradients.einsum_equation import Equation, plain_equation
from tlcli.exports.onnx_source.gradients.gradient_flow import Step
from tlcli.exports.onnx_source.graph.node_writer import sizes


@dataclass(frozen=True)
class _Letters:
    """Letters of the batch: that of the equation, and those of its images, classes and rows."""

    batch: str
    images: str
    classes: str
    rows: str

    def with_classes(self, term: str) -> str:
        return term.replace(self.batch, self.images + self.classes + self.rows)

    def without_classes(self, term: str) -> str:
        return term.replace(self.batch, self.images + self.rows)


def einsum(step: Step) -> None:
    """Contribute the gradient to each operand."""
    text = step.attributes["equation"].decode()
    equation = plain_equation(text, [_dims(step, index) for index in range(len(step.node.input))])
    letters = _Letters(equation.output[step.extent.batch], *equation.unused[:3])
    gradient = step.rows.split(step.gradient, step.extent)
    for index, term in enumerate(equation.operands):
        if step.needs(index):
            _contribute(step, equation, letters, gradient, index, term)


def _contribute(step: Step, equation: Equation, letters: _Letters, gradient: str, index: int, term: str) -> None:
    """Contribute the gradient to one operand, whose letters are `term`."""
    target = step.extent_of(index)
    if letters.batch not in term or equation.axis(index, letters.batch) != target.batch:
        raise NotImplementedError("the batch under another letter than the output's")
    others = [number for number in range(len(step.node.input)) if number != index]
    terms = [letters.with_classes(equation.output), *(letters.without_classes(equation.operands[number]) for number in others)]
    values = [gradient, *(_operand(step, equation, letters.batch, number) for number in others)]
    for diagonal in equation.diagonals:
        terms.append(diagonal)
        values.append(step.writer.constant(np.eye(equation.sizes[diagonal[0]], dtype=np.float32)))
    missing = [letter for letter in term if letter != letters.batch and not any(letter in known for known in terms)]
    if missing:  # summed over one operand only: its gradient is the same along these axes
        terms.append("".join(missing))
        values.append(step.writer.constant(np.ones([equation.sizes[letter] for letter in missing], dtype=np.float32)))
    result = step.op("Einsum", *values, equation=f"{','.join(terms)}->{letters.with_classes(term)}")
    step.give(index, step.rows.merge(result, target))


def _operand(step: Step, equation: Equation, batch: str, index: int) -> str:
    """Return an operand without the axes that are broadcast, and with its batch axis split into images and rows."""
    name, term = step.node.input[index], equation.operands[index]
    constant = step.constant(index)
    if constant is not None:
        if batch in term:
            raise NotImplementedError("a constant along the batch")
        kept = [constant.shape[equation.axis(index, letter)] for letter in term]
        return name if len(kept) == constant.ndim else step.op("Reshape", name, sizes(*kept))
    extent = step.extent_of(index)
    if batch not in term or equation.axis(index, batch) != extent.batch:
        raise NotImplementedError("the batch under another letter than the output's")
    shape = [[-1, extent.dims[extent.batch]] if letter == batch else [equation.sizes[letter]] for letter in term]
    return step.op("Reshape", name, sizes(*(size for part in shape for size in part)))


def _dims(step: Step, index: int) -> tuple[int, ...]:
    """Return the shape of an operand for two images, so that a constant with one row counts as broadcast along the batch."""
    constant = step.constant(index)
    if constant is not None:
        return constant.shape
    extent = step.extent_of(index)
    return tuple(2 * size if axis == extent.batch else size for axis, size in enumerate(extent.dims))
