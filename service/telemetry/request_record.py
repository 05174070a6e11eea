"""Record of one request: its model, the time of each stage, and its outcome. This module is independent of protobuf and gRPC.

Metrics, traces and request logs are derived from the record when the request ends. Code that handles a request adds to the record
through `current_request()`. Python's context variables carry the record from task to task. Outside a request, `current_request()`
returns `NO_REQUEST`, which ignores everything.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, TypeVar

from tlcli.service.system.thread_pool import Timed

logger = logging.getLogger(__name__)

T = TypeVar("T")
Stage = Literal["decode", "queue", "infer", "render", "total"]
STAGES: tuple[Stage, ...] = ("decode", "queue", "infer", "render")
"""Stages in the order in which a request passes through them. The stage `total` is the whole request and is not listed here."""

REQUEST_ID = "x-request-id"
"""Header that identifies a request. The server returns it with the response."""

OK = "OK"
Headers = Iterable[tuple[str, str | bytes]]
"""gRPC metadata or HTTP headers, as pairs of a lower-case name and a value."""

OnEnd = Callable[["RequestRecord"], None]
"""Callback that receives the record of each request when the request ends."""

_TRACE_HEADERS = ("traceparent", "tracestate")
_LONGEST_ID = 128
_LONGEST_ECHO = 1024


@dataclass(frozen=True, slots=True)
class Span:
    """Time span that a request spent in one stage, measured with `time.monotonic_ns`."""

    stage: Stage
    begun_ns: int
    took_ns: int


class RequestRecord:
    """Record of one request, used as a context manager around its work.

    method: called method, such as `tlcli.v1.Classifier/Classify`.
    protocol: `grpc` or `http`.
    echo: value of the `x-request-id` header in a form that can be sent back; empty without the header.
    trace_headers: `traceparent` and `tracestate` headers, unchanged (W3C Trace Context).
    trace_id: id of the trace that the request belongs to; empty if the request is not traced.
    model, version: name and version of the model that handles the request; empty until the model is found.
    images: number of images in the request.
    code: outcome of the request, as the name of a gRPC status code.
    received_bytes, sent_bytes: sizes of the request and response messages.
    """

    def __init__(self, method: str, headers: Headers = (), protocol: str = "grpc", on_end: Iterable[OnEnd] = ()) -> None:
        """Create a record. The `on_end` callbacks are called when the request ends."""
        self.method = method
        self.protocol = protocol
        self.echo = ""
        self.trace_headers: dict[str, str] = {}
        for name, value in headers:
            if name == REQUEST_ID:
                self.echo = _sendable(value) if protocol == "grpc" else str(value)
            elif name in _TRACE_HEADERS:
                self.trace_headers[name] = str(value)
        self.trace_id = ""
        self.model = ""
        self.version = ""
        self.images = 0
        self.code = ""
        self.received_bytes = 0
        self.sent_bytes = 0
        self.spans: list[Span] = []
        self.begun_ns = self.ended_ns = 0
        self._own_id = ""
        self._on_end = on_end
        self._token: Token[RequestRecord] | None = None

    def __enter__(self) -> Self:
        self._token = _CURRENT.set(self)
        self.begun_ns = time.monotonic_ns()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ended_ns = time.monotonic_ns()
        if self._token is not None:
            _CURRENT.reset(self._token)
        if not self.code:
            self.code = OK if kind is None else "INTERNAL" if issubclass(kind, Exception) else "CANCELLED"
        for on_end in self._on_end:
            try:
                on_end(self)
            except Exception:
                logger.exception("request %s cannot be recorded", self.request_id)  # the response is still valid

    @property
    def request_id(self) -> str:
        """Id of the request for log lines: the id in the request, else the `x-request-id` header, else a random id."""
        if not self._own_id:
            self._own_id = _printable(self.echo) or secrets.token_hex(8)
        return self._own_id

    def took_ns(self) -> dict[Stage, int]:
        """Return the time spent in each stage, in nanoseconds. Time that several images spend in the same stage at once counts once."""
        took: dict[Stage, int] = {}
        until: dict[Stage, int] = {}
        for span in self.spans if len(self.spans) < 2 else sorted(self.spans, key=_begun_ns):
            end_ns = span.begun_ns + span.took_ns
            fresh_ns = end_ns - max(span.begun_ns, until.get(span.stage, 0))
            took[span.stage] = took.get(span.stage, 0) + max(0, fresh_ns)
            until[span.stage] = max(end_ns, until.get(span.stage, 0))
        took["total"] = self.ended_ns - self.begun_ns
        return took

    def note_request(self, request_id: str, images: int) -> None:
        """Record the id contained in the request, which may be empty, and the number of images."""
        if request_id:
            self._own_id = _printable(request_id)
        self.images = images

    def note_model(self, model: str, version: int) -> None:
        """Record the name and version of the model that handles the request."""
        self.model = model
        self.version = str(version)

    def note_code(self, code: str) -> None:
        """Record the outcome, as the name of a gRPC status code."""
        self.code = code

    def note_span(self, stage: Stage, submitted_ns: int, waited_ns: int, took_ns: int) -> None:
        """Record a job that was submitted at `submitted_ns`, waited in a queue for `waited_ns`, and then ran for `took_ns`."""
        if waited_ns:
            self.spans.append(Span("queue", submitted_ns, waited_ns))
        if took_ns:
            self.spans.append(Span(stage, submitted_ns + waited_ns, took_ns))


class RequestRecorder:
    """Recorder of the requests of one server, over both protocols.

    in_flight: number of requests in progress.
    """

    def __init__(self, on_end: Sequence[OnEnd]) -> None:
        """Create a recorder that calls each `on_end` callback, in the event loop, whenever a request ends."""
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

    def _ended(self, request: RequestRecord) -> None:
        self.in_flight -= 1


class _NoRequest(RequestRecord):
    """Null object for code that runs outside any request."""

    def note_request(self, request_id: str, images: int) -> None:
        """Do nothing."""

    def note_model(self, model: str, version: int) -> None:
        """Do nothing."""

    def note_code(self, code: str) -> None:
        """Do nothing."""

    def note_span(self, stage: Stage, submitted_ns: int, waited_ns: int, took_ns: int) -> None:
        """Do nothing."""

    @property
    def request_id(self) -> str:
        """Placeholder for the request id in log lines."""
        return "?"


NO_REQUEST = _NoRequest("")
"""Record that `current_request` returns outside any request."""

_CURRENT: ContextVar[RequestRecord] = ContextVar("request", default=NO_REQUEST)


def current_request() -> RequestRecord:
    """Return the record of the request that the calling code handles, or `NO_REQUEST` outside any request."""
    return _CURRENT.get()


async def timed(stage: Stage, job: Awaitable[Timed[T]]) -> Timed[T]:
    """Await a job and record its time as a stage of the current request.

    Raises:
        Exception: any exception raised by `job`.
    """
    submitted_ns = time.monotonic_ns()
    done = await job
    current_request().note_span(stage, submitted_ns, done.waited_ns, done.took_ns)
    return done


def _begun_ns(span: Span) -> int:
    return span.begun_ns


def _sendable(value: str | bytes) -> str:
    """Restrict a value to printable ASCII, and shorten it to leave room for the other gRPC metadata of a response."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text[:_LONGEST_ECHO]).strip()


def _printable(text: str) -> str:
    """Shorten text and replace line breaks and control characters, which a terminal would interpret."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_LONGEST_ID])
