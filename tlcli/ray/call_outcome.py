"""Translation of the status that Ray's proxy reports for a failed call, either a rejection by the application or a failure in Ray."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import grpc
from grpc_status import rpc_status

from tlcli.contract.errors import OverloadedError, ServerError, TlcliError
from tlcli.service.protocol import error_status
from tlcli.service.protocol.error_status import RETRY_AFTER_MS
from tlcli.service.protocol.rpc_methods import Metadata

logger = logging.getLogger("ray.serve")

FROM_APPLICATION = ("tlcli-from-application", "")
"""Metadata entry that marks a rejection by the application on its way to the proxy. Failures in Ray lack this entry."""

_LOST = ("The actor ", "The worker ", "Failed to retrieve object ")
"""Prefixes of Ray's messages about a dead process or node, or a lost result. Other INTERNAL errors would occur again on a retry."""

_BUSY_RETRY_S = 0.25
"""Retry delay in seconds when every replica is at its request limit. Ray provides no better estimate."""

_LOST_RETRY_S = 0.2
"""Retry delay in seconds after a replica died. Ray has removed the replica by then."""


@dataclass(frozen=True)
class Status:
    """Status of a failed call, in the form of the arguments of `context.abort`, with the metadata as a tuple."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: Metadata


def status_of(code: grpc.StatusCode, details: str, metadata: Metadata) -> Status:
    """Return the status that the client receives for a failed call.

    Args:
        code, details, metadata: status that Ray's proxy has set. All metadata except `FROM_APPLICATION` are passed on unchanged.
    """
    if FROM_APPLICATION in metadata:
        return Status(code, details, tuple(pair for pair in metadata if pair != FROM_APPLICATION))
    error, retry_s = _error_of(code, details)
    if error is None:
        return Status(code, details, metadata)
    logger.warning("a call failed in Ray with %s, reported as %s: %s", code.name, type(error).__name__, details)
    status = rpc_status.to_status(error_status.to_status(error))
    retry_after = (RETRY_AFTER_MS, str(round(1000 * retry_s)))
    return Status(status.code, status.details, (*metadata, *status.trailing_metadata, retry_after))


def _error_of(code: grpc.StatusCode, details: str) -> tuple[TlcliError | None, float]:
    """Return the `TlcliError` and the retry delay in seconds for a failure in Ray. The error is None if Ray's code is already right."""
    if code is grpc.StatusCode.INTERNAL and details.startswith(_LOST):
        return ServerError("the replica that processed this request died: retry to reach another replica"), _LOST_RETRY_S
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        message = f"every replica is at its limit of requests: retry in {1000 * _BUSY_RETRY_S:.0f} ms"
        return OverloadedError(message, _BUSY_RETRY_S), _BUSY_RETRY_S
    if code is grpc.StatusCode.UNAVAILABLE:
        return ServerError(f"no replica is available: {details}"), _LOST_RETRY_S
    return None, 0.0
