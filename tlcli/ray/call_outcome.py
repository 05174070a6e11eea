"""What the end of a call means that Ray's proxy tells of: a refusal of the application's, or a failure of Ray's."""

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

TOLD = ("tlcli-told", "")
"""Comes with every refusal of the application's, as far as the proxy, and with no failure of Ray's."""

_GONE = ("The actor ", "The worker ", "Failed to retrieve object ")
"""How Ray begins to tell of a process that died, or its node, or of an answer that was there. What else is INTERNAL would happen again."""

_BUSY_S = 0.25
"""When to ask again where every replica has as much as it may: Ray knows no better."""

_GONE_S = 0.2
"""When to ask again where a replica is gone: Ray has taken it out by then."""


@dataclass(frozen=True)
class Status:
    """As `context.abort` takes it: metadata in a tuple."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: Metadata


def status_of(code: grpc.StatusCode, details: str, metadata: Metadata) -> Status:
    """The status of a call that has failed, for a client.

    Args:
        code, details, metadata: what Ray's proxy has set; metadata go behind the status as they are.
    """
    if TOLD in metadata:
        return Status(code, details, tuple(pair for pair in metadata if pair != TOLD))
    meaning, wait_s = _meaning(code, details)
    if meaning is None:
        return Status(code, details, metadata)
    logger.warning("a call ended with %s, told as %s: %s", code.name, type(meaning).__name__, details)
    told = rpc_status.to_status(error_status.to_status(meaning))
    advice = (RETRY_AFTER_MS, str(round(1000 * wait_s)))
    return Status(told.code, told.details, (*metadata, *told.trailing_metadata, advice))


def _meaning(code: grpc.StatusCode, details: str) -> tuple[TlcliError | None, float]:
    """The error that stands for a failure of Ray's, and when to ask again; no error where the code says it well."""
    if code is grpc.StatusCode.INTERNAL and details.startswith(_GONE):
        return ServerError("the replica that had the request is gone: ask again, of another"), _GONE_S
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return OverloadedError("every replica has as much as it may take: ask again in a moment", _BUSY_S), _BUSY_S
    if code is grpc.StatusCode.UNAVAILABLE:
        return ServerError(f"no replica answers: {details}"), _GONE_S
    return None, 0.0
