"""One connection: uvicorn's, with a limit of time for each thing that it waits for."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
from pydantic_core import to_json
from uvicorn.protocols.http.h11_impl import H11Protocol

from tlcli.service.rest.accept_loop import Connections
from tlcli.service.rest.error_responses import JSON

_HEAD_S = 30.0
"""For a request's line and headers, from the connection's begin or the answer before. Between requests, uvicorn ends a silent connection
after five seconds."""

_REST_S = 10.0
"""For the rest of a body that nobody reads, after the answer: clients that send all before they read must not be cut off."""

_STALL_S = 30.0
"""For a client to take any of what is written to it."""

_PROBE_S = (0.05, 0.05, 0.2, 0.7, 4.0)
"""After the end of what a client sends, when to look whether it is still there; the last is repeated."""


class HttpConnection(H11Protocol):
    """Hangs up on a client that is slow to ask or does not take its answer; answers one that has only closed its own side."""

    held: Connections
    """Told when the connection is lost."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._limit: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._probing: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._ended = False
        self._probes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Expect a request."""
        super().connection_made(transport)
        self._expect(_HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        for timer in (self._limit, self._stalled, self._probing):
            if timer is not None:
                timer.cancel()  # it would keep what is over in memory
        self.held.lose()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that cannot be read with a line of JSON, as any other, and close the connection."""
        body = to_json({"error": "invalid HTTP request: expected HTTP/1.1 with a Host header"})
        headers = [("content-type", JSON), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=400, headers=headers, reason="Bad Request"), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self.transport.close()

    def handle_events(self) -> None:
        """Stop the clock when a request's headers are there."""
        super().handle_events()
        if self._asked and self._limit is not None:
            self._limit.cancel()
            self._limit = None
        elif not self._asked and self._limit is None:
            self._expect(_HEAD_S)

    def on_response_complete(self) -> None:
        """Expect the next request, or the rest of this one's body."""
        whole = self.conn.their_state is not h11.SEND_BODY
        self._expect(_HEAD_S if whole else _REST_S)
        super().on_response_complete()
        self._watch_writing()
        if self._ended and not self._asked:
            self.transport.close()

    def eof_received(self) -> bool:  # type: ignore[override]  # True keeps the connection, which uvicorn never does
        """Keep a connection whose client has sent its request and closed its side: it may wait for the answer, or have left."""
        if self.scheme == "https" or not self._asked or self.cycle.more_body:
            return False
        self._ended = True
        self._probe_later()
        return True

    def pause_writing(self) -> None:
        """Watch whether the client takes what is written."""
        super().pause_writing()
        self._watch_writing()

    @property
    def _asked(self) -> bool:
        """True between a request's headers and the end of its answer."""
        return self.cycle is not None and not self.cycle.response_complete

    def _expect(self, seconds: float) -> None:
        if self._limit is not None:
            self._limit.cancel()
        self._limit = self.loop.call_later(seconds, self.transport.abort)

    def _watch_writing(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        if self._unsent and self._stalled is None:
            self._stalled = self.loop.call_later(_STALL_S, self._look_at_writing)

    def _look_at_writing(self) -> None:
        self._stalled = None
        before = self._unsent
        if before and self.transport.get_write_buffer_size() >= before:
            self.transport.abort()
        else:
            self._watch_writing()

    def _probe_later(self) -> None:
        self._probing = self.loop.call_later(_PROBE_S[min(self._probes, len(_PROBE_S) - 1)], self._probe)

    def _probe(self) -> None:
        """Find out whether the client is still there: one that has left answers whatever is sent to it with a reset.

        What is sent is an interim answer, which clients of HTTP/1.1 pass over (RFC 9110, 15.2).
        """
        if self.transport.is_closing() or not self._asked:
            return
        own: socket.socket | None = self.transport.get_extra_info("socket")
        if own is not None and own.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        often = len(_PROBE_S) - 1
        if self._probes in (0, often) and not self.cycle.response_started and self.scope["http_version"] == "1.1":
            self.transport.write(self.conn.send(h11.InformationalResponse(status_code=100, headers=[], reason="Continue")))
        self._probes = min(self._probes + 1, often)
        self._probe_later()
