"""Writer of ONNX nodes: one call per operator; equal operators with the same inputs are written once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

Operand = str | float | npt.NDArray[Any]
"""Name of a value, a number (stored as float32), or an array."""


class NodeWriter:
    """List of new nodes and constants, whose names begin with a prefix.

    nodes: nodes in topological order.
    constants: initializers.
    """

    def __init__(self, prefix: str) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._prefix = prefix
        self._known: dict[Any, str] = {}

    def op(self, operator: str, *inputs: Operand, **attributes: Any) -> str:
        """Add a node with one output, and return the name of that output. An existing equal node is reused."""
        return self.ops(operator, *inputs, outputs=1, **attributes)[0]

    def ops(self, operator: str, *inputs: Operand, outputs: int, **attributes: Any) -> list[str]:
        """Add a node with several outputs, and return their names."""
        names = [self.operand(value) for value in inputs]
        key = (operator, *names, outputs, repr(sorted(attributes.items())))
        if key not in self._known:
            self._known[key] = f"{self._prefix}{operator}_{len(self.nodes)}"
            produced = self._outputs(self._known[key], outputs)
            self.nodes.append(helper.make_node(operator, names, produced, name=self._known[key], **attributes))
        return self._outputs(self._known[key], outputs)

    def named(self, operator: str, inputs: Sequence[Operand], output: str, **attributes: Any) -> str:
        """Add a node whose output has the given name."""
        self.nodes.append(helper.make_node(operator, [self.operand(value) for value in inputs], [output], name=output, **attributes))
        return output

    def constant(self, value: npt.NDArray[Any]) -> str:
        """Return the name of a constant with the given value."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._known:
            self._known[key] = f"{self._prefix}constant_{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), self._known[key]))
        return self._known[key]

    def operand(self, value: Operand) -> str:
        """Return the name of a value, a number or an array."""
        if isinstance(value, str):
            return value
        return self.constant(value if isinstance(value, np.ndarray) else np.array(value, dtype=np.float32))

    @staticmethod
    def _outputs(name: str, count: int) -> list[str]:
        return [name, *(f"{name}/{number}" for number in range(1, count))]


def sizes(*values: int) -> npt.NDArray[np.int64]:
    """Return an int64 array of shapes, axes or indices."""
    return np.array(values, dtype=np.int64)
