"""HTTP component of a server, which combines endpoints, access control and connections."""

from __future__ import annotations

from functools import partial

from tlcli.service.inference.components import Components
from tlcli.service.rest.access_control import AccessControl, AllowedHosts
from tlcli.service.rest.app import Application, CancelOnDisconnect
from tlcli.service.rest.classify_routes import ClassifyEndpoint
from tlcli.service.rest.endpoint import Endpoint
from tlcli.service.rest.http_server import HttpServer
from tlcli.service.rest.http_tls import server_context
from tlcli.service.rest.open_inference_routes import OpenInferenceEndpoints
from tlcli.service.rest.openapi import OpenApi
from tlcli.service.security.tokens import Token
from tlcli.service.system.addresses import join_address
from tlcli.service.system.reloading_file import ReloadingFile


class Http:
    """HTTP server that listens as soon as it is created and handles requests between `start` and `stop`.

    address: base URL of the server.
    """

    def __init__(self, components: Components, port: int, tokens: ReloadingFile[tuple[Token, ...]] | None) -> None:
        """Listen on the configured address.

        Args:
            components: server components that handle the requests.
            port: port to listen on; 0 for a free port.
            tokens: accepted tokens; None if requests need no token.

        Raises:
            SettingsError: the server cannot listen on the address, or the certificates cannot be used.
        """
        settings = components.settings
        certificate, key = settings.tls_certificate, settings.tls_key
        self._tls = None if certificate is None or key is None else server_context(certificate, key, settings.tls_client_ca)
        cancelling = CancelOnDisconnect()
        self._app = Application(
            OpenApi(_endpoints(components), has_tokens=tokens is not None).endpoints,
            AccessControl(tokens, AllowedHosts(settings.allowed_hosts, settings.host)),
            cancelling,
            components.is_serving,
            partial(components.recorder.start_request, protocol="http"),
            components.budget,
        )
        self._server = HttpServer(settings.host, port, settings.reuse_port, cancelling, components.max_connections)
        self.address = f"{'http' if self._tls is None else 'https'}://{join_address(settings.host, self._server.port)}"

    async def start(self) -> None:
        """Start answering requests."""
        await self._server.start(self._app.asgi, self._tls)

    async def stop(self, grace_s: float) -> None:
        """Stop the server; see `HttpServer.stop`."""
        await self._server.stop(grace_s)

    def close(self) -> None:
        """Close the listening sockets of a server that was not started."""
        self._server.close()


def _endpoints(components: Components) -> list[Endpoint]:
    open_inference = OpenInferenceEndpoints(
        components.open_inference,
        components.repository,
        components.control,
        components.workers,
        components.is_serving,
        components.max_message_bytes,
    )
    return [ClassifyEndpoint(components.classifier, components.settings.limits).endpoint(), *open_inference.endpoints()]
