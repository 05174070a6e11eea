"""gRPC interceptor that records each request, from message bytes to response bytes, and conversion of errors to the statuses of calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
from grpc_status import rpc_status

from tlcli.contract.errors import OverloadedError
from tlcli.service.protocol.error_status import RETRY_AFTER_MS
from tlcli.service.protocol.rpc_methods import SERVICES, Context, path_of
from tlcli.service.telemetry.failed_request import record_error
from tlcli.service.telemetry.request_record import REQUEST_ID, Headers, RequestRecord, RequestRecorder, current_request

_METHODS = {path_of(method): path_of(method)[1:] for service in SERVICES for method in service.methods}
"""Names of our methods, by path. Names sent by clients must not become label values of metrics."""


class RequestInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Interceptor that records requests. It runs before the interceptors that reject requests, so it records rejected requests too.

    Each image of a stream counts as a separate request. The stream itself counts as a request only if it fails before its first image.
    """

    def __init__(self, recorder: RequestRecorder) -> None:
        self._recorder = recorder

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Wrap the handlers of our methods so that they record requests."""
        handler: Any = await continuation(handler_call_details)
        method = _METHODS.get(handler_call_details.method)
        if handler is None or method is None:
            return handler  # type: ignore[no-any-return]
        headers = tuple(handler_call_details.invocation_metadata or ())
        serialize = handler.response_serializer
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(self._call(handler.unary_unary, serialize, method, headers))
        behaviour = self._stream(handler.stream_stream, method, headers)
        return grpc.stream_stream_rpc_method_handler(behaviour, response_serializer=serialize)

    def _call(self, behaviour: Any, serialize: Any, method: str, headers: Headers) -> Any:
        async def recorded(data: bytes, context: Context) -> bytes:
            with self._recorder.start_request(method, headers) as request:
                request.received_bytes = len(data)
                _send_back(context, request)
                try:
                    answer: bytes = serialize(await behaviour(data, context))
                except BaseException as error:
                    request.code = request.code or _code(context, error)
                    if isinstance(error, grpc.aio.AbortError):
                        # gRPC keeps the error in a reference cycle with its own state until garbage collection: free the request now.
                        error.__context__ = data = None  # type: ignore[assignment]
                        raise error.with_traceback(None) from None
                    raise
                request.sent_bytes = len(answer)
                return answer

        return recorded

    def _stream(self, behaviour: Any, method: str, headers: Headers) -> Any:
        async def recorded(messages: object, context: Context) -> None:
            with StreamRecord(self._recorder, method, headers) as stream:
                _send_back(context, stream)
                try:
                    await behaviour(messages, context)
                except BaseException as error:
                    stream.note_failure(_code(context, error))
                    raise

        return recorded


class StreamRecord(RequestRecord):
    """Record of a stream, which is one call that carries many requests."""

    def __init__(self, recorder: RequestRecorder, method: str, headers: Headers) -> None:
        super().__init__(method, headers)
        self._recorder = recorder
        self._headers = headers
        self._requests = 0

    def next_request(self) -> RequestRecord:
        """Start the record of the next request of the stream; see `RequestRecorder.start_request`."""
        self._requests += 1
        return self._recorder.start_request(self.method, self._headers)

    def note_failure(self, code: str) -> None:
        """Record a stream that failed with this status code. If it failed before its first request, count it as one request."""
        if not self._requests:
            with self.next_request() as request:
                request.note_code(code)


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


def next_stream_request() -> RequestRecord:
    """Start the record of the next request of the current stream."""
    stream = current_request()
    return stream.next_request() if isinstance(stream, StreamRecord) else RequestRecord("")


def echoed_metadata() -> tuple[tuple[str, str], ...]:
    """Return the metadata to send back to the client with the response or error of the current request."""
    echo = current_request().echo
    return ((REQUEST_ID, echo),) if echo else ()


def _send_back(context: Context, request: RequestRecord) -> None:
    if request.echo:  # in trailing metadata: metadata before the response would prevent a client from retrying
        context.set_trailing_metadata(echoed_metadata())


def _code(context: Context, error: BaseException) -> str:
    if isinstance(error, Exception):
        code = context.code()  # a number while no code is set
        return code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"
    left_s = context.time_remaining()
    return "CANCELLED" if left_s is None or left_s > 0 else "DEADLINE_EXCEEDED"
