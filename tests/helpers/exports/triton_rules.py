"""Rules of Triton's ONNX Runtime backend for the configuration of a model, which it checks when it loads the model.

Written from its source of 2026 (`ModelInstanceState::ValidateInputs`, `ValidateOutputs`, `CompareDimsSupported`), for tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

TRITON_TYPES = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.BOOL: "TYPE_BOOL",
}


@dataclass(frozen=True)
class Tensor:
    """Input or output of the graph. dims: -1 where the size is open."""

    type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """Inputs and outputs of the ONNX file. required: inputs without a default; optional: inputs with one."""

    required: Mapping[str, Tensor]
    optional: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    @classmethod
    def read(cls, path: str) -> Graph:
        graph = onnx.load(path).graph
        defaults = {initializer.name for initializer in graph.initializer}
        inputs = {value.name: _tensor(value) for value in graph.input}
        return cls(
            required={name: tensor for name, tensor in inputs.items() if name not in defaults},
            optional={name: tensor for name, tensor in inputs.items() if name in defaults},
            outputs={value.name: _tensor(value) for value in graph.output},
        )


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    tensor = value.type.tensor_type
    dims = tuple(one.dim_value if one.HasField("dim_value") else -1 for one in tensor.shape.dim)
    return Tensor(TRITON_TYPES[tensor.elem_type], dims)


def refusal(config: Any, graph: Graph) -> str:
    """Return the reason for which Triton would not load the model with this `ModelConfig`; empty if it would."""
    needed = sum(not one.optional for one in config.input)
    if needed != len(graph.required):
        return f"configuration expects {needed} inputs, model provides {len(graph.required)}"
    inputs = {**graph.required, **graph.optional}
    for one in config.input:
        if one.optional and config.max_batch_size:
            return f"optional input '{one.name}' is not supported for models that support batching"
        if problem := _mismatch(one, inputs, config.max_batch_size, exact=False):
            return problem
    for one in config.output:
        if problem := _mismatch(one, graph.outputs, config.max_batch_size, exact=True):
            return problem
    return ""


def _mismatch(one: Any, there: Mapping[str, Tensor], max_batch_size: int, exact: bool) -> str:
    if one.name not in there:
        return f"unexpected '{one.name}'"
    tensor, kind = there[one.name], type(one).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[one.data_type].name
    if kind != tensor.type:
        return f"'{one.name}' is {tensor.type}, the configuration says {kind}"
    dims: Sequence[int] = [*([-1] if max_batch_size else []), *one.dims]
    if max_batch_size and tensor.dims[:1] != (-1,):
        return f"the first dimension of '{one.name}' is not the batch's"
    if len(dims) != len(tensor.dims) or any(a != b for a, b in zip(tensor.dims, dims, strict=True) if exact or a != -1):
        return f"'{one.name}' has the shape {list(tensor.dims)}, the configuration says {list(dims)}"
    return ""
