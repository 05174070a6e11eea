"""HTTP server that runs uvicorn on its own port in the gRPC server's event loop, without its signal handling, log and command line."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Iterator, Sequence
from functools import partial

import uvicorn
from starlette.applications import Starlette

from tlcli.contract.errors import SettingsError
from tlcli.service.rest.app import CancelOnDisconnect
from tlcli.service.rest.http_connections import Acceptor, Connections, HttpConnection
from tlcli.service.system.addresses import join_address

_BACKLOG = 2048
"""Maximum number of connections that the operating system queues before they are accepted; same as uvicorn's default."""

_CANCELLED_S = 1.0
"""Seconds to wait for the responses to cancelled requests before their connections are aborted."""


class HttpServer:
    """HTTP server that listens as soon as it is created and handles requests after `start`.

    port: port of the server.
    """

    def __init__(self, host: str, port: int, reuse_port: bool, cancelling: CancelOnDisconnect, max_connections: int) -> None:
        """Listen on an address.

        Args:
            host, port, reuse_port: see `tlcli.service.settings.server_settings`.
            cancelling: cancels work in progress at shutdown.
            max_connections: maximum number of open connections.

        Raises:
            SettingsError: the server cannot listen on the address.
        """
        self._sockets = _bind(host, port, reuse_port)
        self._cancelling = cancelling
        self._connections = Connections(max_connections)
        self._uvicorn: _Uvicorn | None = None
        self._running: asyncio.Task[None] | None = None
        self.port: int = self._sockets[0].getsockname()[1]

    async def start(self, app: Starlette, tls: ssl.SSLContext | None) -> None:
        """Start answering requests.

        Args:
            app: application that handles the requests.
            tls: TLS context; None for plain HTTP.
        """
        config = uvicorn.Config(
            app,
            http=type("CountedConnection", (HttpConnection,), {"open_connections": self._connections}),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ssl_context_factory=None if tls is None else lambda config, default: tls,
        )
        self._uvicorn = _Uvicorn(config, self._connections)
        self._running = asyncio.create_task(self._uvicorn.serve(self._sockets))
        listening = asyncio.create_task(self._uvicorn.listening.wait())
        await asyncio.wait({self._running, listening}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if self._running.done():
            self._running.result()

    async def stop(self, grace_s: float) -> None:
        """Stop accepting connections and finish in-flight requests. Cancel the requests that remain after `grace_s` seconds.

        A second call may shorten the wait.
        """
        if self._uvicorn is None or self._running is None:
            self.close()
            return
        self._uvicorn.should_exit = True
        await asyncio.wait({self._running}, timeout=grace_s)
        if not self._running.done():
            self._cancelling.cancel_all()
            await asyncio.wait({self._running}, timeout=_CANCELLED_S)
        if not self._running.done():  # some clients do not read their responses
            for connection in list(self._uvicorn.server_state.connections):
                connection.transport.abort()
        await self._running

    def close(self) -> None:
        """Close the listening sockets of a server that was not started."""
        for listening in self._sockets:
            listening.close()


class _Uvicorn(uvicorn.Server):
    """uvicorn server with a custom accept loop and without signal handlers.

    listening: event that is set once the server accepts connections.
    """

    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self._connections = connections
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signal handling to `tlcli.service.launch`."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections with `Acceptor` instead of asyncio's own server."""
        protocol = partial(self.config.http_protocol_class, config=self.config, server_state=self.server_state, app_state={})  # type: ignore[call-arg]
        self.servers = [Acceptor(listening, protocol, self.config.ssl, self._connections) for listening in sockets or ()]  # type: ignore[misc]
        self.started = True
        self.listening.set()


def _bind(host: str, port: int, reuse_port: bool) -> list[socket.socket]:
    """Return a listening socket for each address of the host name. All sockets share one port."""
    bound: list[socket.socket] = []
    refused: OSError | UnicodeError | None = None
    try:
        for family, *_, sockaddr in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
            try:
                bound.append(_listen(family, (sockaddr[0], port if not bound else bound[0].getsockname()[1], *sockaddr[2:]), reuse_port))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # IPv6 is not available
                    raise
                refused = error
    except (OSError, UnicodeError) as error:
        refused = error
        for listening in bound:
            listening.close()
        bound = []
    if not bound:
        reason = getattr(refused, "strerror", None) or refused
        raise SettingsError(
            f"cannot listen on {join_address(host, port)} for HTTP: {reason}: choose another address with --host and --http-port"
            " (--http-port 0 picks a free port)"
        ) from refused
    return bound


def _listen(family: int, sockaddr: Sequence[object], reuse_port: bool) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(sockaddr[0] != "::"))  # `::` accepts IPv4 too, as in gRPC
        listening.bind(tuple(sockaddr))
        listening.listen(_BACKLOG)  # immediately, because two sockets can bind the same port as long as neither listens
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening
