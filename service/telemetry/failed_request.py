"""Conversion of errors to statuses for the client, recorded for metrics and logs."""

from __future__ import annotations

import logging

import grpc
from google.rpc import status_pb2

from tlcli.contract.errors import TlcliError
from tlcli.service.protocol import error_status
from tlcli.service.telemetry.request_record import current_request

logger = logging.getLogger(__name__)

_CODE_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


def record_error(error: Exception) -> status_pb2.Status:
    """Convert an error to a status and record it as the outcome of the current request. Internal errors are logged."""
    if not isinstance(error, TlcliError):
        logger.error("request %s failed with an internal error", current_request().request_id, exc_info=error)
    status = error_status.to_status(error)
    current_request().note_code(_CODE_NAMES.get(status.code, "UNKNOWN"))
    return status
