"""Tensors inside JSON (the protocol's `data` field) or after it (the binary tensor data extension).

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from pydantic_core import to_json

from tlcli.contract.errors import RequestError
from tlcli.service.inference.open_inference import ENCODED, InferAnswer, InferQuery, check_parameters
from tlcli.service.rest.json_fields import objects, optional, read_object, required, shown
from tlcli.service.rest.schemas import BASE64
from tlcli.service.types.tensor import BOOL, BYTES, INT64, UINT8, InputTensor, OutputTensor, check_shape

_KINDS: dict[str, type] = {BOOL: bool, UINT8: int, INT64: int, BYTES: str}
_NAMES: dict[type, str] = {bool: "true or false", int: "integers", str: "strings"}


@dataclass(frozen=True)
class InferCall:
    """Inference request and the requested encoding of its response.

    binary: maps output names to True if the output is returned as bytes after the JSON, for outputs that specify it.
    binary_by_default: return all other outputs as bytes after the JSON.
    """

    query: InferQuery
    binary: Mapping[str, bool]
    binary_by_default: bool


@dataclass(frozen=True)
class EncodedAnswer:
    """Encoded response.

    json_bytes: length of the JSON in `body` if tensors follow it; None if `body` is JSON only.
    """

    body: bytes
    json_bytes: int | None


def read_infer(body: bytes, json_bytes: int | None, model: str, version: str) -> InferCall:
    """Read an inference request from its body.

    Args:
        body: JSON, optionally followed by binary tensors.
        json_bytes: length of the JSON in bytes. None if the body is JSON only; 0 if it is one encoded image (Triton's raw binary request).
        model, version: path parameters of the request.

    Raises:
        RequestError: the body is not a valid inference request, or it uses an unsupported part of the protocol.
    """
    if json_bytes is not None and json_bytes > len(body):
        raise RequestError(
            f"the header announces {json_bytes:,} bytes of JSON, but the body has {len(body):,} bytes: send the complete body"
        )
    if json_bytes == 0:
        return _read_raw(body, model, version)
    document = read_object(body if json_bytes is None else body[:json_bytes])
    start = len(body) if json_bytes is None else json_bytes
    inputs = []
    for number, entry in enumerate(objects("the request", document, "inputs")):
        tensor, start = _read_input(f"inputs[{number}]", entry, body, start)
        inputs.append(tensor)
    if start != len(body):
        raise RequestError(
            f"{len(body) - start:,} bytes are left after the inputs: their binary_data_size must add up to all bytes after the JSON"
        )
    outputs, binary = [], {}
    for number, entry in enumerate(objects("the request", document, "outputs")):
        name = required(f"outputs[{number}]", entry, "name", str)
        parameters: dict[str, Any] = optional(f"output {name!r}", entry, "parameters", {})
        check_parameters(f"output {name!r}", parameters)
        outputs.append(name)
        if parameters.get("binary_data") is not None:
            binary[name] = required(f"output {name!r}", parameters, "binary_data", bool)
    defaults: dict[str, Any] = optional("the request", document, "parameters", {})
    query = InferQuery.of(model, version, optional("the request", document, "id", ""), inputs, outputs)
    return InferCall(query, binary, optional("the request", defaults, "binary_data_output", False))


def _read_raw(body: bytes, model: str, version: str) -> InferCall:
    """Read a body that is one encoded image without JSON. Its response is binary too."""
    if not body:
        raise RequestError("the request's body is empty: with Inference-Header-Content-Length 0 it must be an encoded image")
    return InferCall(InferQuery.of(model, version, "", [InputTensor(ENCODED, BYTES, (1,), None, (body,))], ()), {}, True)


def write_infer(answer: InferAnswer, call: InferCall) -> EncodedAnswer:
    """Encode a response. NaN and infinity become null in JSON and stay unchanged in binary data."""
    entries, binary = [], []
    for output in answer.outputs:
        entry: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        if call.binary.get(output.name, call.binary_by_default):
            binary.append(output.raw)
            entry["parameters"] = {"binary_data_size": len(output.raw)}
        else:
            entry["data"] = _values(output)
        entries.append(entry)
    document: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version, "outputs": entries}
    if answer.request_id:
        document["id"] = answer.request_id
    head = to_json(document, inf_nan_mode="null")
    return EncodedAnswer(b"".join([head, *binary]), len(head) if binary else None)


def _read_input(where: str, entry: Mapping[str, Any], body: bytes, start: int) -> tuple[InputTensor, int]:
    """Return an input tensor and the offset in the body at which the next binary tensor starts."""
    name = required(where, entry, "name", str)
    where = f"input {name!r}"
    datatype, shape = required(where, entry, "datatype", str), required(where, entry, "shape", list)
    if {*map(type, shape)} - {int}:
        raise RequestError(f"{where}: its shape is {shape!r:.60}: expected integers")
    check_shape(where, shape)
    parameters: dict[str, Any] = optional(where, entry, "parameters", {})
    check_parameters(where, parameters)
    if parameters.get("binary_data_size") is None:
        data = required(where, entry, "data", list)
        return InputTensor(name, datatype, tuple(shape), None, _typed(where, datatype, shape, data, parameters)), start
    size = required(where, parameters, "binary_data_size", int)
    if entry.get("data") is not None:
        raise RequestError(f"{where} has both data and binary_data_size: send one of them")
    if not 0 <= size <= len(body) - start:
        raise RequestError(
            f"{where}: its binary_data_size is {size:,}, but {len(body) - start:,} bytes are left after the JSON: send the rest"
        )
    return InputTensor(name, datatype, tuple(shape), body[start : start + size]), start + size


def _typed(where: str, datatype: str, shape: list[int], data: list[Any], parameters: Mapping[str, Any]) -> list[Any]:
    """Return the values as a flat list of the datatype's Python type.

    Return an empty list for a datatype that no input has; such a tensor is rejected later.
    """
    kind = _KINDS.get(datatype)
    if kind is None:
        return []
    values = _flat(where, shape, data)
    if others := {*map(type, values)} - {kind}:
        other = next(value for value in values if type(value) in others)
        raise RequestError(f"{where}: expected {_NAMES[kind]} for {datatype}, got {shown(other)}")
    if kind is int and values and not -(2**63) <= min(values) <= max(values) < 2**63:
        raise RequestError(f"{where}: expected 64-bit integers, got {shown(min(values))} to {shown(max(values))}")
    return [_decoded(where, value, parameters) for value in values] if kind is str else values


def _flat(where: str, shape: list[int], data: list[Any]) -> list[Any]:
    """Flatten nested data in row-major order. Flat data is returned unchanged."""
    for size in shape[1:]:
        if not data or type(data[0]) is not list:
            break
        if {*map(type, data)} != {list} or {*map(len, data)} != {size}:
            raise RequestError(f"{where}: the nesting of its data differs from its shape {shape}: expected one level per axis")
        data = list(chain.from_iterable(data))
    return data


def _decoded(where: str, text: str, parameters: Mapping[str, Any]) -> bytes:
    if parameters.get("content_type") != BASE64:
        raise RequestError(f'{where}: expected bytes in base64, with "parameters": {{"content_type": "{BASE64}"}}, or binary data')
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{where}: invalid base64: {error}") from error


def _values(tensor: OutputTensor) -> list[Any]:
    values: list[Any] = np.frombuffer(tensor.raw, "<i8" if tensor.datatype == INT64 else "<f4").tolist()
    return values
