"""HTTP as a part of a server: what it answers from, put together."""

from __future__ import annotations

from functools import partial

from tlcli.service.inference.components import Parts
from tlcli.service.rest.allowed_hosts import AllowedHosts
from tlcli.service.rest.app import Application
from tlcli.service.rest.classify_routes import ClassifyEndpoint
from tlcli.service.rest.disconnect import Attending
from tlcli.service.rest.endpoint import Endpoint
from tlcli.service.rest.http_server import HttpServer
from tlcli.service.rest.http_tls import server_context
from tlcli.service.rest.open_inference_routes import OpenInferenceEndpoints
from tlcli.service.rest.openapi import OpenApi
from tlcli.service.rest.token_middleware import Guard
from tlcli.service.security.tokens import Token
from tlcli.service.system.addresses import join_address
from tlcli.service.system.reloading_file import ReloadingFile


class Http:
    """Listens from the start, answers from `start` to `stop`. address: what to put before a path."""

    def __init__(self, parts: Parts, port: int, tokens: ReloadingFile[tuple[Token, ...]] | None) -> None:
        """tokens: that requests must carry one of; None: they need none.

        Raises:
            SettingsError: the address cannot be listened at, or the certificates cannot be used.
        """
        settings = parts.settings
        certificate, key = settings.tls_certificate, settings.tls_key
        self._tls = None if certificate is None or key is None else server_context(certificate, key, settings.tls_client_ca)
        attending = Attending()
        described = OpenApi(_endpoints(parts), has_tokens=tokens is not None)
        observe = partial(parts.observer.start_request, protocol="http")
        self._app = Application(
            described.endpoints,
            Guard(tokens, AllowedHosts(settings.allowed_hosts, settings.host)),
            attending,
            parts.is_serving,
            observe,
            parts.budget,
        )
        self._server = HttpServer(settings.host, port, settings.reuse_port, attending, parts.max_connections)
        self.address = f"{'http' if self._tls is None else 'https'}://{join_address(settings.host, self._server.port)}"

    async def start(self) -> None:
        """Take requests."""
        await self._server.start(self._app.asgi, self._tls)

    async def stop(self, grace_s: float) -> None:
        """See `HttpServer.stop`."""
        await self._server.stop(grace_s)

    def close(self) -> None:
        """Give up the address, where it has not started."""
        self._server.close()


def _endpoints(parts: Parts) -> list[Endpoint]:
    open_inference = OpenInferenceEndpoints(
        parts.open_inference, parts.repository, parts.control, parts.workers, parts.is_serving, parts.max_message_bytes
    )
    return [ClassifyEndpoint(parts.classifier, parts.settings.limits).endpoint(), *open_inference.endpoints()]
