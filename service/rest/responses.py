"""JSON responses and error responses.

An error response has the HTTP status of the error's gRPC code and a one-line message. Nothing else is revealed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import grpc
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tlcli.contract.errors import MemoryLimitError, OverloadedError
from tlcli.service.telemetry.failed_request import record_error

JSON = "application/json"

STATUSES: dict[grpc.StatusCode, int] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""HTTP statuses for gRPC codes, as mapped by `google.rpc.Code`. FAILED_PRECONDITION is an exception: it maps to 409 instead of 400, because
a broken model is not the fault of the request."""

_BY_NUMBER = {code.value[0]: status for code, status in STATUSES.items()}
_CODES = {status: code.name for code, status in STATUSES.items()} | {
    403: grpc.StatusCode.PERMISSION_DENIED.name,
    408: grpc.StatusCode.DEADLINE_EXCEEDED.name,
    415: grpc.StatusCode.INVALID_ARGUMENT.name,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED.name,
}
_RETRY_S = 1.0
"""Retry delay of a server that is not ready, in seconds."""


def json_response(value: BaseModel | Mapping[str, object], status: int = 200) -> Response:
    """Create a JSON response. Fields of a model that are None are omitted; NaN and infinity become null."""
    return Response(to_json(value, inf_nan_mode="null", exclude_none=True), status, media_type=JSON)


def error_response(error: Exception) -> Response:
    """Create the response to a failed request. Details of server faults are logged but not sent."""
    if isinstance(error, HTTPException):
        return error_line(error.status_code, error.detail, error.headers)
    status = record_error(error)
    number = 503 if isinstance(error, MemoryLimitError) else _BY_NUMBER[status.code]
    if number == 429 or number == 503:
        retry_s = error.retry_s if isinstance(error, OverloadedError) else _RETRY_S
        return error_line(number, status.message, {"Retry-After": str(max(1, math.ceil(retry_s)))})  # whole seconds: RFC 9110, 10.2.3
    return error_line(number, status.message)


def error_line(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Create a response with the body `{"error": message}`."""
    return Response(to_json({"error": message}), status, headers, JSON)


def code_of(status: int) -> str:
    """Return the name of the gRPC code for an HTTP status. Metrics use it to count both protocols in the same way."""
    return "OK" if status < 400 else _CODES.get(status, "UNKNOWN")
