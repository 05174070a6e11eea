"""What is noted of a request while it is answered: which model, how long each stage took, how it ended. No protobuf, no gRPC.

Metrics, traces and the log of requests are made of it when the request is over. The code on the way notes things of the request that it
works for, which Python's context carries from task to task: what is called outside of any request notes nothing.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, TypeVar

from tlcli.service.system.thread_pool import Timed

logger = logging.getLogger(__name__)

T = TypeVar("T")
Stage = Literal["decode", "queue", "infer", "render", "total"]
STAGES: tuple[Stage, ...] = ("decode", "queue", "infer", "render")
"""In the order in which a request goes through them; `total` is all of it."""

REQUEST_ID = "x-request-id"
"""A header that comes with a request, and goes back with its answer."""

OK = "OK"
Headers = Iterable[tuple[str, str | bytes]]
"""Names, in small letters, and values: gRPC's metadata, HTTP's headers."""

Tell = Callable[["Observed"], None]

_TRACE_HEADERS = ("traceparent", "tracestate")
_LONGEST_ID = 128
_LONGEST_ECHO = 1024


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a request's time, by `time.monotonic_ns`."""

    stage: Stage
    begun_ns: int
    took_ns: int


class Observed:
    """One request, as a context manager around its work.

    method: what was called, such as `tlcli.v1.Classifier/Classify`.
    protocol: `grpc` or `http`.
    echo: the `x-request-id` that came beside the request, as it may be sent back; empty if none did.
    trace_headers: `traceparent` and `tracestate`, as they came (W3C Trace Context).
    trace_id: of the trace that it is part of; empty if nobody traces it.
    model, version: what answers; empty until it is found.
    images: how many came.
    code: how it ended, as gRPC names it.
    received_bytes, sent_bytes: of the messages.
    """

    def __init__(self, method: str, headers: Headers = (), protocol: str = "grpc", tell: Iterable[Tell] = ()) -> None:
        """tell: each is called with this at the end."""
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
        self._tell = tell
        self._token: Token[Observed | None] | None = None

    def __enter__(self) -> Self:
        self._token = _UNDER_WAY.set(self)
        self.begun_ns = time.monotonic_ns()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ended_ns = time.monotonic_ns()
        if self._token is not None:
            _UNDER_WAY.reset(self._token)
        if not self.code:
            self.code = OK if kind is None else "INTERNAL" if issubclass(kind, Exception) else "CANCELLED"
        for tell in self._tell:
            try:
                tell(self)
            except Exception:
                logger.exception("request %s cannot be told of", self.request_id)  # its answer is good even so

    @property
    def request_id(self) -> str:
        """The request's own id, or the one that came beside it, or one made here; fit for a line of a log."""
        if not self._own_id:
            self._own_id = _printable(self.echo) or secrets.token_hex(8)
        return self._own_id

    def took_ns(self) -> dict[Stage, int]:
        """How long it was in each stage that it went through: where its images were there at the same time, that time counts once."""
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
        """Its own id, which may be empty, and how many images came."""
        if request_id:
            self._own_id = _printable(request_id)
        self.images = images

    def note_model(self, model: str, version: int) -> None:
        """Which model was found for it."""
        self.model = model
        self.version = str(version)

    def note_span(self, stage: Stage, asked_ns: int, waited_ns: int, took_ns: int) -> None:
        """That a job asked for at that time waited, and then was done."""
        if waited_ns:
            self.spans.append(Span("queue", asked_ns, waited_ns))
        if took_ns:
            self.spans.append(Span(stage, asked_ns + waited_ns, took_ns))


_UNDER_WAY: ContextVar[Observed | None] = ContextVar("request", default=None)


def under_way() -> Observed | None:
    """The request that the caller works for; None outside of any."""
    return _UNDER_WAY.get()


def note_request(request_id: str, images: int) -> None:
    """See `Observed.note_request`; of the request under way, if any is."""
    if (request := _UNDER_WAY.get()) is not None:
        request.note_request(request_id, images)


def note_model(model: str, version: int) -> None:
    """See `Observed.note_model`; of the request under way, if any is."""
    if (request := _UNDER_WAY.get()) is not None:
        request.note_model(model, version)


def note_code(code: str) -> None:
    """How the request under way ends, if any is."""
    if (request := _UNDER_WAY.get()) is not None:
        request.code = code


async def timed(stage: Stage, job: Awaitable[Timed[T]]) -> Timed[T]:
    """Do a job, and note its time in the request under way.

    Raises:
        Exception: what `job` raises.
    """
    asked_ns = time.monotonic_ns()
    done = await job
    note_timed(stage, asked_ns, done)
    return done


def note_timed(stage: Stage, asked_ns: int, done: Timed[T]) -> None:
    """See `Observed.note_span`; of the request under way, if any is."""
    if (request := _UNDER_WAY.get()) is not None:
        request.note_span(stage, asked_ns, done.waited_ns, done.took_ns)


def _begun_ns(span: Span) -> int:
    return span.begun_ns


def _sendable(value: str | bytes) -> str:
    """As gRPC's metadata may be: printable ASCII, and not so long that an answer's other metadata have no room."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text[:_LONGEST_ECHO]).strip()


def _printable(text: str) -> str:
    """Cut, on one line, and without what a terminal would act on."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_LONGEST_ID])
