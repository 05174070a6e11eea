"""Our errors on the wire and back: the one place that knows both sides.

A refusal travels as a `google.rpc.Status` (AIP-193): the gRPC code of the table below, the error's own line, and an
`ErrorInfo` that names its class, so that our client raises the error that was raised on the server, and can tell a
server that refuses from one that cannot be reached.
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
"""Of our `ErrorInfo`s."""

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
"""Every error of the tree, also those that a server should never meet."""

_MAX_MESSAGE_BYTES = 1500
"""A status travels twice in trailing metadata, percent-encoded and in base64, of which clients read 8 KiB."""


def to_status(error: Exception) -> status_pb2.Status:
    """An error as a client may see it. One that is not of our tree tells nothing of itself: log it."""
    kind = next((kind for kind in type(error).__mro__ if kind in CODES), None)
    if kind is None:
        return status_pb2.Status(
            code=_number(grpc.StatusCode.INTERNAL), message="the server failed on this request by a fault of its own: see its log"
        )
    status = status_pb2.Status(code=_number(CODES[kind]), message=_cut(str(error)))
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=_reason(kind), domain=DOMAIN))
    if isinstance(error, errors.OverloadedError):
        advice = error_details_pb2.RetryInfo()
        advice.retry_delay.FromNanoseconds(round(1e9 * error.retry_s))
        status.details.add().Pack(advice)
    return status


def from_status(status: status_pb2.Status) -> TlcliError:
    """The error that a status of a stream's answer stands for."""
    return _named_in(status) or _BY_NUMBER.get(status.code, errors.ServerError)(status.message)


def from_rpc_error(error: grpc.RpcError, address: str, why_unreachable: Callable[[], str] = lambda: "") -> TlcliError:
    """What a failed call means to the caller of a server at `address`.

    Args:
        error: the call's.
        address: of the server.
        why_unreachable: asked where no server answers, since gRPC does not say; empty where it is not known.
    """
    with suppress(ValueError):  # a status that contradicts its call was tampered with on the way: go by the call
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # a failed call is both, which the stubs cannot say
        ours = None if status is None else _named_in(status)
        if ours is not None:
            return ours
    code, details = error.code(), _one_line(error.details())
    if code is grpc.StatusCode.UNAVAILABLE:
        if reason := why_unreachable():
            return errors.ServerError(f"{address}: {reason}")
        if "http1.x server" in details:  # gRPC's own words
            return errors.ServerError(f"{address} speaks HTTP; this client speaks gRPC: give the port of gRPC (--port, by default 8001)")
        return errors.ServerError(
            f"no server answers at {address}: start one with `tlcli serve`, or say where it is with --host and --port ({details})"
        )
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return errors.ServerError(f"{address}: {details} (token, or --token-file)")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.ServerError(f"{address} did not answer in time: it is busy, or the time that was given is short")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return errors.ServerError(f"what answers at {address} is no tlcli server ({details})")
    return _BY_NUMBER.get(_number(code), errors.ServerError)(f"{address}: {details or code.name}")


def _named_in(status: status_pb2.Status) -> TlcliError | None:
    """The error that our server put into a status, or None if it put none there."""
    info, advice = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    found = None
    for detail in status.details:
        if detail.Unpack(info) and info.domain == DOMAIN and info.reason in _BY_REASON:
            found = _BY_REASON[info.reason](status.message)
        detail.Unpack(advice)
    if isinstance(found, errors.OverloadedError):
        found.retry_s = advice.retry_delay.ToNanoseconds() / 1e9
    return found


def _number(code: grpc.StatusCode) -> int:
    number: int = code.value[0]
    return number


def _reason(kind: type[TlcliError]) -> str:
    """`ImageError` to `IMAGE_ERROR`, as AIP-193 writes reasons."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).upper()


_BY_REASON = {_reason(kind): kind for kind in CODES}

# For a status without our ErrorInfo: gRPC's own, or another server's. What is not here is a ServerError.
_BY_NUMBER: dict[int, type[TlcliError]] = {
    _number(grpc.StatusCode.INVALID_ARGUMENT): errors.RequestError,
    _number(grpc.StatusCode.RESOURCE_EXHAUSTED): errors.RequestError,  # a message over the limit
    _number(grpc.StatusCode.NOT_FOUND): errors.NotFoundError,
    _number(grpc.StatusCode.FAILED_PRECONDITION): errors.ModelFileError,
}


def _cut(message: str) -> str:
    encoded = _one_line(message).encode(errors="replace")
    return encoded.decode() if len(encoded) <= _MAX_MESSAGE_BYTES else encoded[:_MAX_MESSAGE_BYTES].decode(errors="ignore") + " ..."


def _one_line(message: str | None) -> str:
    return " ".join((message or "").split())
