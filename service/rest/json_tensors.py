"""Tensors in JSON, or behind it: the protocol's `data`, and its binary tensor data extension.

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
from tlcli.service.rest.json_fields import field, objects, optional, read_object, shown
from tlcli.service.types.tensor import BOOL, BYTES, INT64, UINT8, InputTensor, OutputTensor, check_shape

_KINDS: dict[str, type] = {BOOL: bool, UINT8: int, INT64: int, BYTES: str}
_SAID: dict[type, str] = {bool: "true or false", int: "whole numbers", str: "texts"}

BASE64 = "base64"
"""What the parameter `content_type` of a BYTES input says of its texts, as MLServer has it: JSON holds no bytes."""


@dataclass(frozen=True)
class InferCall:
    """A question, and how its answer is to be written.

    binary: the outputs that come as bytes behind the JSON, where it is said of them.
    binary_by_default: whether the others do.
    """

    query: InferQuery
    binary: Mapping[str, bool]
    binary_by_default: bool


@dataclass(frozen=True)
class Written:
    """An answer. json_bytes: how much of `body` is JSON, where tensors follow it; None where it is all of it."""

    body: bytes
    json_bytes: int | None


def read_infer(body: bytes, json_bytes: int | None, model: str, version: str) -> InferCall:
    """A question from a request's body.

    Args:
        body: JSON, and the binary tensors behind it.
        json_bytes: how much of it is JSON; None: all of it; 0: the body is one encoded image, Triton's raw binary request.
        model, version: from the request's path.

    Raises:
        RequestError: it is no such request, or asks for what is not offered.
    """
    if json_bytes is not None and json_bytes > len(body):
        raise RequestError(f"{json_bytes:,} bytes of JSON were announced, the request's body has {len(body):,}")
    if json_bytes == 0:
        return _read_raw(body, model, version)
    document = read_object(body if json_bytes is None else body[:json_bytes])
    start = len(body) if json_bytes is None else json_bytes
    inputs = []
    for number, given in enumerate(objects("the request", document, "inputs")):
        tensor, start = _read_input(f"inputs[{number}]", given, body, start)
        inputs.append(tensor)
    if start != len(body):
        raise RequestError(f"{len(body) - start:,} bytes are left behind the inputs: their binary_data_size sum up to less than came")
    outputs, binary = [], {}
    for number, given in enumerate(objects("the request", document, "outputs")):
        name = field(f"outputs[{number}]", given, "name", str)
        parameters: dict[str, Any] = optional(f"output {name!r}", given, "parameters", {})
        check_parameters(f"output {name!r}", parameters)
        outputs.append(name)
        if parameters.get("binary_data") is not None:
            binary[name] = field(f"output {name!r}", parameters, "binary_data", bool)
    about: dict[str, Any] = optional("the request", document, "parameters", {})
    query = InferQuery.of(model, version, optional("the request", document, "id", ""), inputs, outputs)
    return InferCall(query, binary, optional("the request", about, "binary_data_output", False))


def _read_raw(body: bytes, model: str, version: str) -> InferCall:
    """One encoded image without any JSON; what is answered is binary too."""
    if not body:
        raise RequestError("the request's body is empty: an encoded image was expected behind 0 bytes of JSON")
    return InferCall(InferQuery.of(model, version, "", [InputTensor(ENCODED, BYTES, (1,), None, (body,))], ()), {}, True)


def write_infer(answer: InferAnswer, call: InferCall) -> Written:
    """An answer as a body. Numbers that are none (NaN, infinity) are null in JSON, and themselves in binary data."""
    described, behind = [], []
    for one in answer.outputs:
        about: dict[str, Any] = {"name": one.name, "datatype": one.datatype, "shape": one.shape}
        if call.binary.get(one.name, call.binary_by_default):
            behind.append(one.raw)
            about["parameters"] = {"binary_data_size": len(one.raw)}
        else:
            about["data"] = _values(one)
        described.append(about)
    document: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version, "outputs": described}
    if answer.request_id:
        document["id"] = answer.request_id
    head = to_json(document, inf_nan_mode="null")
    return Written(b"".join([head, *behind]), len(head) if behind else None)


def _read_input(where: str, given: Mapping[str, Any], body: bytes, start: int) -> tuple[InputTensor, int]:
    """A tensor, and where in the body the next one begins."""
    name = field(where, given, "name", str)
    where = f"input {name!r}"
    datatype, shape = field(where, given, "datatype", str), field(where, given, "shape", list)
    if {*map(type, shape)} - {int}:
        raise RequestError(f"{where}: its shape is {shape!r:.60}: whole numbers were expected")
    check_shape(where, shape)
    parameters: dict[str, Any] = optional(where, given, "parameters", {})
    check_parameters(where, parameters)
    if parameters.get("binary_data_size") is None:
        data = field(where, given, "data", list)
        return InputTensor(name, datatype, tuple(shape), None, _typed(where, datatype, shape, data, parameters)), start
    size = field(where, parameters, "binary_data_size", int)
    if given.get("data") is not None:
        raise RequestError(f"{where}: has data beside binary_data_size: send one or the other")
    if not 0 <= size <= len(body) - start:
        raise RequestError(f"{where}: its binary_data_size is {size:,}, and {len(body) - start:,} bytes are left behind the JSON")
    return InputTensor(name, datatype, tuple(shape), body[start : start + size]), start + size


def _typed(where: str, datatype: str, shape: list[int], data: list[Any], parameters: Mapping[str, Any]) -> list[Any]:
    """The values one by one, of the kind that the datatype has; none for a datatype that no input has, which is refused by that."""
    kind = _KINDS.get(datatype)
    if kind is None:
        return []
    values = _flat(where, shape, data)
    if others := {*map(type, values)} - {kind}:
        other = next(value for value in values if type(value) in others)
        raise RequestError(f"{where}: values of {datatype} are {_SAID[kind]}, {shown(other)} came")
    if kind is int and values and not -(2**63) <= min(values) <= max(values) < 2**63:
        raise RequestError(f"{where}: {shown(min(values))} to {shown(max(values))} came, which 64 bits do not hold")
    return [_decoded(where, value, parameters) for value in values] if kind is str else values


def _flat(where: str, shape: list[int], data: list[Any]) -> list[Any]:
    """Row by row, whether they came nested or already so."""
    for size in shape[1:]:
        if not data or type(data[0]) is not list:
            break
        if {*map(type, data)} != {list} or {*map(len, data)} != {size}:
            raise RequestError(f"{where}: its data are nested otherwise than its shape {shape}")
        data = list(chain.from_iterable(data))
    return data


def _decoded(where: str, text: str, parameters: Mapping[str, Any]) -> bytes:
    if parameters.get("content_type") != BASE64:
        raise RequestError(
            f'{where}: bytes in JSON were expected in base64, with "parameters": {{"content_type": "{BASE64}"}}; or send binary data'
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{where}: not base64: {error}") from error


def _values(tensor: OutputTensor) -> list[Any]:
    values: list[Any] = np.frombuffer(tensor.raw, "<i8" if tensor.datatype == INT64 else "<f4").tolist()
    return values
