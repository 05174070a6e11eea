"""Translation of the status that Ray's proxy reports for a call: a rejection by the application, or a failure in Ray."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import grpc
from grpc_status import rpc_status

from tlcli.contract.errors import OverloadedError, ServerError, TlcliError
from tlcli.service.protocol import error_status
from tlcli.service.protocol.rpc_methods import Metadata
from tlcli.service.rpc.error_handling import RETRY_AFTER_MS

logger = logging.getLogger("ray.serve")

FROM_APPLICATION = ("tlcli-from-application", "")
"""Metadata that marks a rejection by the application on its way to the proxy. Failures in Ray lack it."""

_LOST = ("The actor ", "The worker ", "Failed to retrieve object ")
"""Start of Ray's messages about a process or node that died, or a lost result. Other INTERNAL errors would happen again on a retry."""

_BUSY_RETRY_S = 0.25
"""Retry delay when every replica is at its limit; Ray gives no better estimate."""

_LOST_RETRY_S = 0.2
"""Retry delay when a replica died; Ray has removed it by then."""


@dataclass(frozen=True)
class Status:
    """Arguments of `context.abort`, with the metadata as a tuple."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: Metadata


def status_of(code: grpc.StatusCode, details: str, metadata: Metadata) -> Status:
    """Return the status that a client gets for a failed call.

    Args:
        code, details, metadata: status that Ray's proxy has set; the metadata are passed on unchanged.
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
    """Return our error for a failure in Ray, and the retry delay in seconds; no error if Ray's code is right as it is."""
    if code is grpc.StatusCode.INTERNAL and details.startswith(_LOST):
        return ServerError("the replica with this request died: retry, another replica will serve it"), _LOST_RETRY_S
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        message = f"every replica is at its limit of requests: retry in {1000 * _BUSY_RETRY_S:.0f} ms"
        return OverloadedError(message, _BUSY_RETRY_S), _BUSY_RETRY_S
    if code is grpc.StatusCode.UNAVAILABLE:
        return ServerError(f"no replica is available: {details}"), _LOST_RETRY_S
    return None, 0.0
