"""What both gRPC edges do with bytes that are no message, and with errors: statuses, as `error_status` writes them."""

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
"""Clients with a retry policy of gRPC's wait so long (gRFC A6)."""

M = TypeVar("M", bound=Message)


@asynccontextmanager
async def refusals(context: Context) -> AsyncIterator[None]:
    """End the call with the status of what is raised inside."""
    try:
        yield
    except grpc.aio.AbortError:
        raise  # the call has its status already
    except Exception as error:  # noqa: BLE001  # turned into a status, and logged if it is a fault of ours
        status = rpc_status.to_status(record_error(error))
        metadata = status.trailing_metadata
        if isinstance(error, OverloadedError):
            metadata = (*metadata, (RETRY_AFTER_MS, str(round(1000 * error.retry_s))))
        await context.abort(status.code, status.details, (*metadata, *echoed_metadata()))


def parse(kind: type[M], data: bytes) -> M:
    """A message from its bytes.

    Raises:
        RequestError: the bytes are none, or hold too much; see `tlcli.service.protocol.parse_cost`.
    """
    check_cost(data, kind.DESCRIPTOR)  # type: ignore[arg-type]  # two names of one class in the stubs
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise RequestError(
            f"{len(data):,} bytes came that are no {kind.DESCRIPTOR.full_name} message: use the .proto of this server"
        ) from error


def message_bytes(data: bytes) -> int:
    """Return the memory that a message takes: as gRPC received it, its bytes, and what is parsed of them."""
    return 3 * len(data)
