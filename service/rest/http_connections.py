"""HTTP connections: an accept loop that bounds their number, and a time limit for every wait of a connection."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

import h11
from pydantic_core import to_json
from uvicorn.protocols.http.h11_impl import H11Protocol

from tlcli.service.rest.responses import JSON

logger = logging.getLogger(__name__)

_HANDSHAKE_S = 10.0
"""Time limit for a TLS handshake in seconds."""

_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_S = 0.5
"""Seconds to wait before the next accept when the system is out of resources."""

_WARNING_S = 60.0
_REFUSED = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\nRetry-After: 1\r\n"
    b"Connection: close\r\n\r\n%s"
)
_TOO_MANY = b'{"error":"connection limit of this server reached (max_connections): retry in 1 s"}'

_HEAD_S = 30.0
"""Time limit for receiving the request line and headers in seconds, counted from the start of the connection or the previous response.
Between requests, uvicorn closes an idle connection after five seconds."""

_REST_S = 10.0
"""Seconds after a response during which the unread rest of a body may still arrive. Clients that send everything before they read the
response must not be disconnected."""

_STALL_S = 30.0
"""Seconds within which a client must read at least some of the response."""

_PROBE_S = (0.05, 0.05, 0.2, 0.7, 4.0)
"""Seconds between probes of a client that has closed its side of the connection. The last value repeats."""


class Connections:
    """Counter of open connections with an upper limit."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._warned_at = -_WARNING_S
        self.open = 0

    def take(self) -> bool:
        """Count a new connection and return True. At the limit, log a warning and return False."""
        if self.open >= self._most:
            self.warn("connection limit reached: %d are open, new ones are refused: raise max_connections", self._most)
            return False
        self.open += 1
        return True

    def lose(self) -> None:
        """Count a connection as closed."""
        self.open -= 1

    def warn(self, message: str, *values: object) -> None:
        """Log a warning, but at most one per minute."""
        if time.monotonic() - self._warned_at >= _WARNING_S:
            self._warned_at = time.monotonic()
            logger.warning(message, *values)


class Acceptor:
    """Accept loop of one listening socket that runs until `close`. It has the methods of `asyncio.Server` that uvicorn calls.

    It replaces asyncio's own server, which logs a traceback for each of 2,048 attempts, twice a second, when file descriptors run out.
    """

    def __init__(
        self,
        listening: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
        connections: Connections,
    ) -> None:
        """Start accepting connections.

        Args:
            listening: the listening socket.
            protocol: factory for the protocol of a connection; the protocol must call `connections.lose` when the connection closes.
            tls: TLS context; None for plain connections.
            connections: counter of open connections.
        """
        self._listening = listening
        self._protocol = protocol
        self._tls = tls
        self._connections = connections
        self._opening: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.create_task(self._accept())

    def close(self) -> None:
        """Stop accepting connections."""
        self._accepting.cancel()

    async def wait_closed(self) -> None:
        """Wait for the accept loop to end, then cancel TLS handshakes in progress."""
        with contextlib.suppress(asyncio.CancelledError):
            await self._accepting
        for task in tuple(self._opening):
            task.cancel()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(self._listening)
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    self._connections.warn("cannot accept connections: %s: raise the limit of open files (ulimit -n)", error.strerror)
                    await asyncio.sleep(_PAUSE_S)
                continue
            if self._connections.take():
                opening = asyncio.create_task(self._open(accepted))
                self._opening.add(opening)
                opening.add_done_callback(self._opening.discard)
            else:
                _refuse(accepted, encrypted=self._tls is not None)

    async def _open(self, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol, accepted, ssl=self._tls, ssl_handshake_timeout=None if self._tls is None else _HANDSHAKE_S
            )
        except (OSError, TimeoutError):  # ssl.SSLError is an OSError
            self._connections.lose()
            accepted.close()
        except asyncio.CancelledError:
            self._connections.lose()
            accepted.close()
            raise


def _refuse(accepted: socket.socket, encrypted: bool) -> None:
    with contextlib.suppress(OSError), accepted:
        if not encrypted:
            accepted.setblocking(False)
            accepted.send(_REFUSED % (len(_TOO_MANY), _TOO_MANY))
            accepted.shutdown(socket.SHUT_WR)
            accepted.recv(65536)  # unread data would turn the end of the connection into a reset


class HttpConnection(H11Protocol):
    """HTTP connection that extends uvicorn's. It times out clients that send slowly or do not read.

    A client that has only closed its own side of the connection still receives its response.
    """

    open_connections: Connections
    """Counter of open connections; updated when this connection closes."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._limit: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._probing: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._ended = False
        self._probes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Start the time limit for the first request."""
        super().connection_made(transport)
        self._expect(_HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers and count the connection as closed."""
        for timer in (self._limit, self._stalled, self._probing):
            if timer is not None:
                timer.cancel()  # a pending timer would keep the connection in memory
        self.open_connections.lose()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Respond to an invalid request with one line of JSON, like any other error, and close the connection."""
        body = to_json({"error": "invalid HTTP request: expected HTTP/1.1 with a Host header"})
        headers = [("content-type", JSON), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=400, headers=headers, reason="Bad Request"), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self.transport.close()

    def handle_events(self) -> None:
        """Stop the time limit when a request's headers are complete."""
        super().handle_events()
        if self._answering and self._limit is not None:
            self._limit.cancel()
            self._limit = None
        elif not self._answering and self._limit is None:
            self._expect(_HEAD_S)

    def on_response_complete(self) -> None:
        """Start the time limit for the next request, or for the rest of this request's body."""
        body_read = self.conn.their_state is not h11.SEND_BODY
        self._expect(_HEAD_S if body_read else _REST_S)
        super().on_response_complete()
        self._watch_writing()
        if self._ended and not self._answering:
            self.transport.close()

    def eof_received(self) -> bool:  # type: ignore[override]  # True keeps the connection; uvicorn never does
        """Return True to keep a half-closed connection open if the client has sent its request.

        Such a client may be waiting for the response or may have left, so it is probed.
        """
        if self.scheme == "https" or not self._answering or self.cycle.more_body:
            return False
        self._ended = True
        self._probe_later()
        return True

    def pause_writing(self) -> None:
        """Start the time limit for the client to read the response."""
        super().pause_writing()
        self._watch_writing()

    @property
    def _answering(self) -> bool:
        """Return True between a request's headers and the end of its response."""
        return self.cycle is not None and not self.cycle.response_complete

    def _expect(self, seconds: float) -> None:
        if self._limit is not None:
            self._limit.cancel()
        self._limit = self.loop.call_later(seconds, self.transport.abort)

    def _watch_writing(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        if self._unsent and self._stalled is None:
            self._stalled = self.loop.call_later(_STALL_S, self._check_writing)

    def _check_writing(self) -> None:
        self._stalled = None
        before = self._unsent
        if before and self.transport.get_write_buffer_size() >= before:
            self.transport.abort()
        else:
            self._watch_writing()

    def _probe_later(self) -> None:
        self._probing = self.loop.call_later(_PROBE_S[min(self._probes, len(_PROBE_S) - 1)], self._probe)

    def _probe(self) -> None:
        """Abort the connection if the client has left; otherwise probe it again.

        The operating system of a client that has left responds to all data with a reset. The probe is an interim response, which HTTP/1.1
        clients skip (RFC 9110, 15.2).
        """
        if self.transport.is_closing() or not self._answering:
            return
        connection: socket.socket | None = self.transport.get_extra_info("socket")
        if connection is not None and connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        last = len(_PROBE_S) - 1
        if self._probes in (0, last) and not self.cycle.response_started and self.scope["http_version"] == "1.1":
            self.transport.write(self.conn.send(h11.InformationalResponse(status_code=100, headers=[], reason="Continue")))
        self._probes = min(self._probes + 1, last)
        self._probe_later()
