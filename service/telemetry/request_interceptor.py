"""gRPC interceptor that records each request, from the bytes of its message to the bytes of its answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc.aio

from tlcli.service.protocol.rpc_methods import SERVICES, Context, path_of
from tlcli.service.telemetry.request_record import REQUEST_ID, Headers, OnEnd, RequestRecord, current_request

_METHODS = {path_of(method): path_of(method)[1:] for service in SERVICES for method in service.methods}
"""Names of our methods, by path. Names sent by clients must not become label values of metrics."""

_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


class RequestInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Interceptor that records requests. It runs before the interceptors that reject requests, so it records rejected requests too.

    Each image of a stream counts as a separate request. The stream itself counts as a request only if it fails before its first image.

    in_flight: number of requests in progress.
    """

    def __init__(self, on_end: Sequence[OnEnd]) -> None:
        """Create an interceptor that calls each `on_end` callback, in the event loop, whenever a request ends."""
        self._on_end = (self._ended, *on_end)
        self.in_flight = 0

    def start_request(self, method: str, headers: Headers, protocol: str = "grpc") -> RequestRecord:
        """Start the record of a request. Use the record as a context manager around the work for the request.

        Args:
            method: name of the method, from a fixed set that clients cannot extend.
            headers, protocol: see `RequestRecord`.
        """
        self.in_flight += 1
        return RequestRecord(method, headers, protocol, self._on_end)

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

    def _ended(self, request: RequestRecord) -> None:
        self.in_flight -= 1

    def _call(self, behaviour: Any, serialize: Any, method: str, headers: Headers) -> Any:
        async def recorded(data: bytes, context: Context) -> bytes:
            with self.start_request(method, headers) as request:
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
            with StreamRecord(self, method, headers) as stream:
                _send_back(context, stream)
                try:
                    await behaviour(messages, context)
                except BaseException as error:
                    stream.note_failure(_code(context, error))
                    raise

        return recorded


class StreamRecord(RequestRecord):
    """Record of a stream, which is one call that carries many requests."""

    def __init__(self, interceptor: RequestInterceptor, method: str, headers: Headers) -> None:
        super().__init__(method, headers)
        self._interceptor = interceptor
        self._headers = headers
        self._requests = 0

    def next_request(self) -> RequestRecord:
        """Start the record of the next request of the stream; see `RequestInterceptor.start_request`."""
        self._requests += 1
        return self._interceptor.start_request(self.method, self._headers)

    def note_failure(self, code: str) -> None:
        """Record a stream that failed with this status code. If it failed before its first request, count it as one request."""
        if not self._requests:
            with self.next_request() as request:
                request.note_code(code)


def code_name(number: int) -> str:
    """Return the name of the gRPC status code with this number, or UNKNOWN if there is none."""
    return _NAMES.get(number, "UNKNOWN")


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
