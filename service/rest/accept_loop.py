"""Accept loop that bounds the number of connections and logs a single line when file descriptors run out."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import time
from collections.abc import Callable

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
