"""Message parsing and conversion of errors to gRPC statuses, shared by both servicers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import grpc.aio
from google.protobuf.message import DecodeError, Message
from grpc_status import rpc_status

from tlcli.contract.errors import OverloadedError, RequestError
from tlcli.service.protocol.parse_cost import check_cost
from tlcli.service.protocol.rpc_methods import Context
from tlcli.service.telemetry.failed_request import record_error
from tlcli.service.telemetry.request_interceptor import echoed_metadata

RETRY_AFTER_MS = "grpc-retry-pushback-ms"
"""Metadata key of the retry delay that clients with a gRPC retry policy respect (gRFC A6)."""

M = TypeVar("M", bound=Message)


@asynccontextmanager
async def abort_on_error(context: Context) -> AsyncIterator[None]:
    """Abort the call with the matching status if an error is raised in the context."""
    try:
        yield
    except grpc.aio.AbortError:
        raise  # the call already has its status
    except Exception as error:  # noqa: BLE001  # every error becomes a status, and is logged if the server is at fault
        status = rpc_status.to_status(record_error(error))
        metadata = status.trailing_metadata
        if isinstance(error, OverloadedError):
            metadata = (*metadata, (RETRY_AFTER_MS, str(round(1000 * error.retry_s))))
        await context.abort(status.code, status.details, (*metadata, *echoed_metadata()))


def parse(kind: type[M], data: bytes) -> M:
    """Parse a message.

    Raises:
        RequestError: the bytes are not a message of this type, or too costly to parse; see `tlcli.service.protocol.parse_cost`.
    """
    check_cost(data, kind.DESCRIPTOR)  # type: ignore[arg-type]  # the stubs have two names for one class
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise RequestError(
            f"the request's {len(data):,} bytes are no {kind.DESCRIPTOR.full_name} message: use the .proto of this server"
        ) from error


def message_bytes(data: bytes) -> int:
    """Return the memory in bytes that a message takes: gRPC's buffer, the bytes, and the parsed message."""
    return 3 * len(data)
