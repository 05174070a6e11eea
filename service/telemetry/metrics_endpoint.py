"""HTTP endpoint for Prometheus: a small server that runs in its own threads, outside the event loop."""

from __future__ import annotations

import socket
import threading
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app


class MetricsEndpoint:
    """HTTP server that serves scrapes until `close` is called.

    port: port that the server listens on.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int, reuse_port: bool) -> None:
        """Start listening; see `tlcli.service.telemetry.metrics.Metrics.serve`.

        Raises:
            OSError: the address cannot be used.
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
        """Stop the server. This can block for half a second."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore the error, which occurs when a scraper closes its connection."""


class _Silent(WSGIRequestHandler):
    timeout = 10.0
    """Time limit in seconds for a request to arrive. Without it, an idle connection would occupy its thread."""

    def log_message(self, format: str, *arguments: object) -> None:
        """Do nothing, because one line per scrape would bury all other log lines."""
