"""Conversion between `TlcliError`s and gRPC statuses, in both directions.

An error is sent as a `google.rpc.Status` (AIP-193) with the gRPC code from the table below, the error's message, and an
`ErrorInfo` that names its class. The client can therefore raise the same error that was raised on the server, and
distinguish a server that rejects a request from a server that cannot be reached.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from tlcli.contract import errors
from tlcli.contract.errors import TlcliError

DOMAIN = "tlcli"
"""Value of `ErrorInfo.domain` that identifies our errors."""

RETRY_AFTER_MS = "grpc-retry-pushback-ms"
"""Metadata key of the retry delay that clients with a gRPC retry policy respect (gRFC A6)."""

CODES: dict[type[TlcliError], grpc.StatusCode] = {
    errors.TlcliError: grpc.StatusCode.INTERNAL,
    errors.SettingsError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ResourceError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ImageError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.RequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.DatasetError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.WeightsError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.HubError: grpc.StatusCode.UNAVAILABLE,
    errors.ModelFileError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DeviceError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ExportError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ParityError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ServerError: grpc.StatusCode.UNAVAILABLE,
    errors.OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.MemoryLimitError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TimeLimitError: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""gRPC status code of every `TlcliError` class, including those that a server should never raise."""

_MAX_MESSAGE_BYTES = 1500
"""Maximum size of an error message. Trailing metadata contain a status twice, percent-encoded and in base64, and clients accept at
most 8 KiB of metadata."""


def to_status(error: Exception) -> status_pb2.Status:
    """Convert an error to a status. Errors other than `TlcliError` reveal nothing to the client, so the caller must log them."""
    kind = next((kind for kind in type(error).__mro__ if kind in CODES), None)
    if kind is None:
        return status_pb2.Status(code=_number(grpc.StatusCode.INTERNAL), message="internal server error: see the server's log")
    status = status_pb2.Status(code=_number(CODES[kind]), message=_truncate(str(error)))
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=_reason(kind), domain=DOMAIN))
    if isinstance(error, errors.OverloadedError):
        advice = error_details_pb2.RetryInfo()
        advice.retry_delay.FromNanoseconds(round(1e9 * error.retry_s))
        status.details.add().Pack(advice)
    return status


def from_status(status: status_pb2.Status) -> TlcliError:
    """Convert the status of a failed image in a stream to an error."""
    return _named_in(status) or _BY_NUMBER.get(status.code, errors.ServerError)(status.message)


def from_rpc_error(error: grpc.RpcError, address: str, why_unreachable: Callable[[], str] = lambda: "") -> TlcliError:
    """Convert gRPC's error of a failed call to the error that the client raises.

    Args:
        error: error that gRPC raised.
        address: address of the server, for the error message.
        why_unreachable: function that returns the reason why the server cannot be reached, which gRPC does not report, or an empty string.
    """
    with suppress(ValueError):  # the status contradicts the call, so an intermediary changed it: use the call
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # a failed call is also an RpcError, which the stubs do not know
        ours = None if status is None else _named_in(status)
        if ours is not None:
            return ours
    code, details = error.code(), _one_line(error.details())
    if code is grpc.StatusCode.UNAVAILABLE:
        if reason := why_unreachable():
            return errors.ServerError(f"{address}: {reason}")
        if "http1.x server" in details:  # gRPC's own words
            return errors.ServerError(f"{address} speaks HTTP, but this client speaks gRPC: use the gRPC port (--port, 8001 by default)")
        return errors.ServerError(
            f"no server responds at {address}: start one with `tlcli serve`, or set its address with --host and --port ({details})"
        )
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return errors.ServerError(f"{address}: {details} (token, or --token-file)")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.ServerError(f"{address} did not respond in time: increase the timeout, or retry when the server is less busy")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return errors.ServerError(f"the server at {address} is not a tlcli server ({details})")
    return _BY_NUMBER.get(_number(code), errors.ServerError)(f"{address}: {details or code.name}")


def _named_in(status: status_pb2.Status) -> TlcliError | None:
    """Return the error that a tlcli server encoded in a status, or None if there is none."""
    info, advice = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    named = None
    for detail in status.details:
        if detail.Unpack(info) and info.domain == DOMAIN and info.reason in _BY_REASON:
            named = _BY_REASON[info.reason](status.message)
        detail.Unpack(advice)
    if isinstance(named, errors.OverloadedError):
        named.retry_s = advice.retry_delay.ToNanoseconds() / 1e9
    return named


def _number(code: grpc.StatusCode) -> int:
    number: int = code.value[0]
    return number


def _reason(kind: type[TlcliError]) -> str:
    """Convert a class name such as `ImageError` to `IMAGE_ERROR`, the form that AIP-193 requires."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).upper()


_BY_REASON = {_reason(kind): kind for kind in CODES}

# Errors for statuses without our ErrorInfo, from gRPC itself or from another server. Other codes become a ServerError.
_BY_NUMBER: dict[int, type[TlcliError]] = {
    _number(grpc.StatusCode.INVALID_ARGUMENT): errors.RequestError,
    _number(grpc.StatusCode.RESOURCE_EXHAUSTED): errors.RequestError,  # a message over the limit
    _number(grpc.StatusCode.NOT_FOUND): errors.NotFoundError,
    _number(grpc.StatusCode.FAILED_PRECONDITION): errors.ModelFileError,
}


def _truncate(message: str) -> str:
    encoded = _one_line(message).encode(errors="replace")
    return encoded.decode() if len(encoded) <= _MAX_MESSAGE_BYTES else encoded[:_MAX_MESSAGE_BYTES].decode(errors="ignore") + " ..."


def _one_line(message: str | None) -> str:
    return " ".join((message or "").split())
