"""Pydantic models of the JSON of errors and of the Open Inference Protocol. The OpenAPI document describes them.

Requests are not validated with these models but read field by field (`tlcli.service.rest.json_fields`), so that each error is one line.
Tensors are written without a model (`tlcli.service.rest.json_tensors`), which is faster.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, RootModel

BASE64 = "base64"
"""Value of the parameter `content_type` for a BYTES input, as in MLServer. It is required because JSON cannot hold raw bytes."""


class Error(BaseModel):
    """Error response."""

    error: str


class Live(BaseModel):
    """Liveness of the server."""

    live: bool


class Ready(BaseModel):
    """Readiness of the server or of a model."""

    ready: bool


class ServerMetadata(BaseModel):
    """Name, version and protocol extensions of the server."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """Name, datatype and shape of an input or output."""

    name: str
    datatype: str
    shape: list[int] = Field(description="-1 stands for any size.")


class ModelProperties(BaseModel):
    """Labels of a model, in the order of its classes."""

    labels: list[str]


class ModelMetadata(BaseModel):
    """Inputs and outputs of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    properties: ModelProperties


class InputParameters(BaseModel):
    """Encoding of an input tensor."""

    binary_data_size: int | None = Field(None, description="Number of bytes after the JSON that hold the values, instead of data.")
    content_type: Literal["base64"] | None = None


class Input(BaseModel):
    """Input tensor."""

    name: str
    datatype: Literal["UINT8", "INT64", "BOOL", "BYTES"]
    shape: list[int]
    data: list[Any] | None = Field(None, description="Values row by row, nested or not. Bytes in base64, with the parameter content_type.")
    parameters: InputParameters | None = None


class RequestedOutputParameters(BaseModel):
    """Encoding of an output tensor."""

    binary_data: bool | None = None


class RequestedOutput(BaseModel):
    """Output to compute."""

    name: str
    parameters: RequestedOutputParameters | None = None


class InferParameters(BaseModel):
    """Default encoding of the outputs."""

    binary_data_output: bool | None = Field(None, description="Whether outputs are returned as bytes after the JSON.")


class InferRequest(BaseModel):
    """Input tensors and the outputs to compute."""

    id: str | None = Field(None, description="Repeated in the response.")
    parameters: InferParameters | None = None
    inputs: list[Input]
    outputs: list[RequestedOutput] | None = Field(None, description="Scores, logits, classes, maps by name. Default: scores and logits.")


class OutputParameters(BaseModel):
    """Encoding of an output tensor."""

    binary_data_size: int | None = None


class Output(BaseModel):
    """Output tensor."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = Field(
        None, description="Values row by row; null for NaN and infinity.", json_schema_extra={"items": {"type": ["number", "null"]}}
    )
    parameters: OutputParameters | None = None


class InferResponse(BaseModel):
    """Computed outputs."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Output]


class RepositoryIndexRequest(BaseModel):
    """Filter for the repository index."""

    ready: bool | None = Field(None, description="List only versions that are ready.")


class ControlRequest(BaseModel):
    """Parameters of a load or unload request. Only `unload_dependents` is accepted."""

    parameters: dict[str, Any] | None = None


class IndexEntry(BaseModel):
    """State of one version of a model."""

    name: str
    version: str
    state: str = Field(json_schema_extra={"enum": ["READY", "LOADING", "UNAVAILABLE"]})
    reason: str


class RepositoryIndex(RootModel[list[IndexEntry]]):
    """State of every version of every model."""
