"""Accept loop: a bounded number of connections, and one log line where the system has no file descriptors left."""

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
"""For a client's part of TLS."""

_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_S = 0.5
"""Before the next try, where the system gives no connection."""

_SAY_AGAIN_S = 60.0
_REFUSED = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\nRetry-After: 1\r\n"
    b"Connection: close\r\n\r\n%s"
)
_TOO_MANY = b'{"error":"as many connections are open as this server takes (max_connections): retry in 1 s"}'


class Connections:
    """Count of open connections, and its bound."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._said_at = -_SAY_AGAIN_S
        self.open = 0

    def take(self) -> bool:
        """Count one more; False at the limit."""
        if self.open >= self._most:
            self.say("connection limit reached: %d are open, new ones are refused (max_connections)", self._most)
            return False
        self.open += 1
        return True

    def lose(self) -> None:
        """Count one less."""
        self.open -= 1

    def say(self, message: str, *values: object) -> None:
        """Log a warning, at most one a minute."""
        if time.monotonic() - self._said_at >= _SAY_AGAIN_S:
            self._said_at = time.monotonic()
            logger.warning(message, *values)


class Acceptor:
    """Accepts the connections of one listening socket from its making until `close`. What uvicorn asks of `asyncio.Server` is here.

    asyncio's own server logs a traceback for each of 2,048 tries, twice a second, where there are no file descriptors left.
    """

    def __init__(
        self,
        listening: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
        connections: Connections,
    ) -> None:
        """protocol: made for each connection; it calls `connections.lose` when that is lost."""
        self._listening = listening
        self._protocol = protocol
        self._tls = tls
        self._connections = connections
        self._opening: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.create_task(self._accept())

    def close(self) -> None:
        """Accept no more."""
        self._accepting.cancel()

    async def wait_closed(self) -> None:
        """Wait for connections whose TLS has not been agreed on."""
        with contextlib.suppress(asyncio.CancelledError):
            await self._accepting
        for task in tuple(self._opening):
            task.cancel()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                one, _ = await loop.sock_accept(self._listening)
            except OSError as error:
                if error.errno in _FULL:
                    self._connections.say("no connection can be taken: %s: raise the limit (ulimit -n)", error.strerror)
                    await asyncio.sleep(_PAUSE_S)
                continue
            if self._connections.take():
                opening = asyncio.create_task(self._open(one))
                self._opening.add(opening)
                opening.add_done_callback(self._opening.discard)
            else:
                _refuse(one, encrypted=self._tls is not None)

    async def _open(self, one: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol, one, ssl=self._tls, ssl_handshake_timeout=None if self._tls is None else _HANDSHAKE_S
            )
        except (OSError, TimeoutError):  # ssl.SSLError is an OSError: not one of our clients
            self._connections.lose()
            one.close()
        except asyncio.CancelledError:
            self._connections.lose()
            one.close()
            raise


def _refuse(one: socket.socket, encrypted: bool) -> None:
    with contextlib.suppress(OSError), one:
        if not encrypted:
            one.setblocking(False)
            one.send(_REFUSED % (len(_TOO_MANY), _TOO_MANY))
            one.shutdown(socket.SHUT_WR)
            one.recv(65536)  # what is left unread would turn the end into a reset
