"""HTTP as a part of a server: what it answers from, put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from service.addresses import join_address
from service.classifier import Classifier
from service.control import ModelControl
from service.observer import Observer
from service.open_inference import OpenInference
from service.renewing import Renewed
from service.repository import Repository
from service.rest.app import Application
from service.rest.attending import Attending
from service.rest.classify import ClassifyEndpoint
from service.rest.endpoint import Endpoint
from service.rest.guard import Guard
from service.rest.open_inference import OpenInferenceEndpoints
from service.rest.openapi import OpenApi
from service.rest.server import HttpServer
from service.rest.tls import server_context
from service.settings import ServerSettings
from service.tokens import Token
from service.workers import Workers


@dataclass(frozen=True)
class Parts:
    """What a server has that HTTP answers from, beside gRPC.

    tokens: that requests must carry one of; None: they need none.
    workers: that read and write large bodies.
    is_serving: whether the server as a whole takes requests.
    max_bytes: of a request that infers.
    """

    classifier: Classifier
    open_inference: OpenInference
    repository: Repository
    control: ModelControl
    observer: Observer
    tokens: Renewed[tuple[Token, ...]] | None
    workers: Workers
    is_serving: Callable[[], bool]
    max_bytes: int


class Http:
    """Listens from the start, answers from `start` to `stop`. address: what to put before a path."""

    def __init__(self, settings: ServerSettings, port: int, parts: Parts) -> None:
        """
        Raises:
            SettingsError: the address cannot be listened at, or the certificates cannot be used.
        """
        certificate, key = settings.tls_certificate, settings.tls_key
        self._tls = None if certificate is None or key is None else server_context(certificate, key, settings.tls_client_ca)
        attending = Attending()
        described = OpenApi(_endpoints(settings, parts), has_tokens=parts.tokens is not None)
        observe = partial(parts.observer.observe, protocol="http")
        self._app = Application(described.endpoints, Guard(parts.tokens), attending, parts.is_serving, observe)
        self._server = HttpServer(settings.host, port, settings.reuse_port, attending)
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


def _endpoints(settings: ServerSettings, parts: Parts) -> list[Endpoint]:
    open_inference = OpenInferenceEndpoints(
        parts.open_inference, parts.repository, parts.control, parts.workers, parts.is_serving, parts.max_bytes
    )
    return [ClassifyEndpoint(parts.classifier, settings.limits).endpoint(), *open_inference.endpoints()]
