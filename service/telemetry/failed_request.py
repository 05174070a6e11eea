"""An error as a client may see it, and as the log and the metrics record it."""

from __future__ import annotations

import logging

from google.rpc import status_pb2

from tlcli.contract.errors import TlcliError
from tlcli.service.protocol import error_status
from tlcli.service.telemetry.request_interceptor import code_name
from tlcli.service.telemetry.request_record import note_code, under_way

logger = logging.getLogger(__name__)


def record_error(error: Exception) -> status_pb2.Status:
    """Return the status of an error, and record it: as the outcome of the request, and in the log if it is a fault of the server."""
    if not isinstance(error, TlcliError):
        request = under_way()
        logger.error("request %s failed by a fault of the server", "?" if request is None else request.request_id, exc_info=error)
    status = error_status.to_status(error)
    note_code(code_name(status.code))
    return status
