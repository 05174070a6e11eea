"""Where gRPC's calls become observed requests: a method of ours is timed from its message to the bytes of its answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc.aio

from tlcli.service.protocol.rpc_methods import SERVICES, Context, path_of
from tlcli.service.telemetry.request_record import REQUEST_ID, Headers, Observed, Tell, under_way

_METHODS = {path_of(method): path_of(method)[1:] for service in SERVICES for method in service.methods}
"""Ours alone, by their paths: names that clients make up must not become values of metrics' labels."""

_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


class Observer(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Observes calls. It comes before those that refuse some, so that these are seen too.

    Each image of a stream is a request of its own; a stream as a whole is none, unless it is refused before its first.

    in_flight: requests under way.
    """

    def __init__(self, tell: Sequence[Tell]) -> None:
        """tell: each is called with every request, when it is over, in the event loop."""
        self._tell = (self._ended, *tell)
        self.in_flight = 0

    def observe(self, method: str, headers: Headers, protocol: str = "grpc") -> Observed:
        """A request that begins now; to be used as a context manager around its work.

        Args:
            method: what was called, of a number of names that no client adds to.
            headers, protocol: see `Observed`.
        """
        self.in_flight += 1
        return Observed(method, headers, protocol, self._tell)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Put what observes in the place of a handler of ours."""
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

    def _ended(self, request: Observed) -> None:
        self.in_flight -= 1

    def _call(self, behaviour: Any, serialize: Any, method: str, headers: Headers) -> Any:
        async def observed(data: bytes, context: Context) -> bytes:
            with self.observe(method, headers) as request:
                request.received_bytes = len(data)
                _send_back(context, request)
                try:
                    answer: bytes = serialize(await behaviour(data, context))
                except BaseException as error:
                    request.code = request.code or _code(context, error)
                    if isinstance(error, grpc.aio.AbortError):
                        # gRPC keeps it in a cycle with its own state, until Python looks for cycles: no request may hang on it.
                        error.__context__ = data = None  # type: ignore[assignment]
                        raise error.with_traceback(None) from None
                    raise
                request.sent_bytes = len(answer)
                return answer

        return observed

    def _stream(self, behaviour: Any, method: str, headers: Headers) -> Any:
        async def observed(requests: object, context: Context) -> None:
            with ObservedStream(self, method, headers) as whole:
                _send_back(context, whole)
                try:
                    await behaviour(requests, context)
                except BaseException as error:
                    whole.refused(_code(context, error))
                    raise

        return observed


class ObservedStream(Observed):
    """A call that many requests come on."""

    def __init__(self, observer: Observer, method: str, headers: Headers) -> None:
        super().__init__(method, headers)
        self._observer = observer
        self._headers = headers
        self._requests = 0

    def one(self) -> Observed:
        """The next request of it, as `Observer.observe` has it."""
        self._requests += 1
        return self._observer.observe(self.method, self._headers)

    def refused(self, code: str) -> None:
        """It ended with that code: counted as a request after all, where none came."""
        if not self._requests:
            with self.one() as request:
                request.code = code


def code_name(number: int) -> str:
    """Of a gRPC status code."""
    return _NAMES.get(number, "UNKNOWN")


def one_of_stream() -> Observed:
    """The next request of the stream under way."""
    stream = under_way()
    return stream.one() if isinstance(stream, ObservedStream) else Observed("")


def sent_back() -> tuple[tuple[str, str], ...]:
    """Metadata that goes back with the answer to the request under way, however it ends."""
    request = under_way()
    return ((REQUEST_ID, request.echo),) if request is not None and request.echo else ()


def _send_back(context: Context, request: Observed) -> None:
    if request.echo:  # behind the answer: metadata before it would end a client's attempts to ask again
        context.set_trailing_metadata(sent_back())


def _code(context: Context, error: BaseException) -> str:
    if isinstance(error, Exception):
        code = context.code()  # a number while nobody has set it
        return code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"
    left_s = context.time_remaining()
    return "CANCELLED" if left_s is None or left_s > 0 else "DEADLINE_EXCEEDED"
