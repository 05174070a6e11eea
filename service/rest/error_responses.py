"""Errors over HTTP: the statuses of `error_status`' gRPC codes, and a line of JSON. Nothing else of an error leaves the server."""

from __future__ import annotations

import math
from collections.abc import Mapping

import grpc
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
"""As `google.rpc.Code` maps them, but for FAILED_PRECONDITION: a model that is broken is no fault of the request's, and no 400."""

_BY_NUMBER = {code.value[0]: status for code, status in STATUSES.items()}
_CODES = {status: code.name for code, status in STATUSES.items()} | {
    403: grpc.StatusCode.PERMISSION_DENIED.name,
    408: grpc.StatusCode.DEADLINE_EXCEEDED.name,
    415: grpc.StatusCode.INVALID_ARGUMENT.name,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED.name,
}
_LATER_S = 1.0
"""After which a server that is not ready is worth asking again."""


def refusal(error: Exception) -> Response:
    """The answer to a request that met an error. A fault of ours is logged, and tells nothing of itself."""
    if isinstance(error, HTTPException):
        return line(error.status_code, error.detail, error.headers)
    status = record_error(error)
    number = 503 if isinstance(error, MemoryLimitError) else _BY_NUMBER[status.code]
    if number == 429 or number == 503:
        retry_s = error.retry_s if isinstance(error, OverloadedError) else _LATER_S
        return line(number, status.message, {"Retry-After": str(max(1, math.ceil(retry_s)))})  # whole seconds: RFC 9110, 10.2.3
    return line(number, status.message)


def line(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """`{"error": message}`."""
    return Response(to_json({"error": message}), status, headers, JSON)


def code_of(status: int) -> str:
    """A status by the name that gRPC has for it: metrics count both alike."""
    return "OK" if status < 400 else _CODES.get(status, "UNKNOWN")
