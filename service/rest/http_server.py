"""HTTP on a port of its own, in the event loop of the gRPC server: uvicorn, without its signals, its log and its command line."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.applications import Starlette

from tlcli.contract.errors import SettingsError
from tlcli.service.rest.accept_loop import Acceptor, Connections
from tlcli.service.rest.disconnect import Attending
from tlcli.service.rest.http_connection import HttpConnection
from tlcli.service.system.addresses import join_address

_WAITING = 2048
"""Connections that the system holds until they are taken; as uvicorn has it."""

_ANSWERED_S = 1.0
"""For the answers of requests that were cancelled, until their connections are cut."""


class HttpServer:
    """Holds its address from the start, takes requests from `start` on. port: that it has."""

    def __init__(self, host: str, port: int, reuse_port: bool, attending: Attending, max_connections: int) -> None:
        """attending: awaits the requests' work. max_connections: at a time.

        Raises:
            SettingsError: the address cannot be listened at.
        """
        self._sockets = _bind(host, port, reuse_port)
        self._attending = attending
        self._connections = Connections(max_connections)
        self._uvicorn: _Uvicorn | None = None
        self._running: asyncio.Task[None] | None = None
        self.port: int = self._sockets[0].getsockname()[1]

    async def start(self, app: Starlette, tls: ssl.SSLContext | None) -> None:
        """Take requests. tls: None to take them unencrypted."""
        config = uvicorn.Config(
            app,
            http=type("Held", (HttpConnection,), {"held": self._connections}),
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
        """Take no more connections, and finish what is in flight; after `grace_s`, refuse what is left. May be asked again, to hurry."""
        if self._uvicorn is None or self._running is None:
            self.close()
            return
        self._uvicorn.should_exit = True
        await asyncio.wait({self._running}, timeout=grace_s)
        if not self._running.done():
            self._attending.end()
            await asyncio.wait({self._running}, timeout=_ANSWERED_S)
        if not self._running.done():  # clients that do not take their answers
            for connection in list(self._uvicorn.server_state.connections):
                connection.transport.abort()
        await self._running

    def close(self) -> None:
        """Give up the address, where it has not started."""
        for one in self._sockets:
            one.close()


class _Uvicorn(uvicorn.Server):
    """listening: set when it takes requests."""

    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self._connections = connections
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The program's signals stay the program's: see `tlcli.service.launch`."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections by `Acceptor` instead of asyncio's own server."""

        def protocol() -> asyncio.Protocol:
            return self.config.http_protocol_class(config=self.config, server_state=self.server_state, app_state={})  # type: ignore[call-arg]

        self.servers = [Acceptor(one, protocol, self.config.ssl, self._connections) for one in sockets or ()]  # type: ignore[misc]
        self.started = True
        self.listening.set()


def _bind(host: str, port: int, reuse_port: bool) -> list[socket.socket]:
    """A socket for each address that the host's name has, all of one port."""
    bound: list[socket.socket] = []
    refused: OSError | UnicodeError | None = None
    try:
        for family, *_, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
            try:
                bound.append(_bound(family, (place[0], port if not bound else bound[0].getsockname()[1], *place[2:]), reuse_port))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # of IPv6, on a machine without
                    raise
                refused = error
    except (OSError, UnicodeError) as error:
        refused = error
        for one in bound:
            one.close()
        bound = []
    if not bound:
        reason = getattr(refused, "strerror", None) or refused
        raise SettingsError(
            f"cannot listen on {join_address(host, port)} for HTTP: {reason}: choose another with --host and --http-port"
            " (--http-port 0 takes a free one)"
        ) from refused
    return bound


def _bound(family: int, place: Sequence[object], reuse_port: bool) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(place[0] != "::"))  # `::` is every address, as gRPC has it
        one.bind(tuple(place))
        one.listen(_WAITING)  # now: two that do not share an address may both be bound to it as long as neither listens
        one.setblocking(False)
    except OSError:
        one.close()
        raise
    return one
