"""Where Prometheus asks: a small HTTP server in threads of its own, away from the event loop."""

from __future__ import annotations

import socket
import threading
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app


class MetricsEndpoint:
    """Answers scrapes from its making until `close`. port: where it listens."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int, reuse_port: bool) -> None:
        """See `tlcli.service.telemetry.metrics.Metrics.serve`.

        Raises:
            OSError: it cannot be listened there.
        """
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]

        class Listening(_Server):
            address_family = family
            allow_reuse_port = reuse_port

        self._server = make_server(host, port, make_wsgi_app(registry), Listening, _Silent)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hang up, within half a second."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A scraper that hangs up is no fault of ours."""


class _Silent(WSGIRequestHandler):
    timeout = 10.0
    """Seconds for a request to come: a connection without one would keep its thread."""

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing: a line for each scrape would drown the others."""
